"""The folder of a training: fresh or resumed, never overwritten by accident; what a checkpoint says of its making."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .config import ConfigError, read_yaml, to_dict, to_yaml
from .state import STATE_NAME

CONFIG = "config.yaml"
RESULTS = (STATE_NAME, "best.safetensors", "model.safetensors")
COURSE = ("seed", "precision", "ema")  # keys of `training` that change its course


def start_folder(config: Any, folder: Path, *, force: bool, also: Sequence[str] = ()) -> None:
    """Make the run folder and write the configuration into it; with `force` remove an earlier training's files.

    Args:
        config: the whole configuration.
        also: further files that belong to a training of this kind.

    Raises:
        ConfigError: it holds a training and `force` is False.
    """
    if any((folder / name).exists() for name in RESULTS) and not force:
        raise ConfigError(
            f"{folder} holds a training already; continue it with --resume, choose another folder with "
            "run=FOLDER, or replace it with --force"
        )
    for name in (*RESULTS, "metrics.csv", CONFIG, *also):
        (folder / name).unlink(missing_ok=True)
    for name in ("tb", "weights"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")


def check_same(config: Any, folder: Path, *, free: Collection[str] = ()) -> None:
    """A resumed training must be the one that was started; only its length and saving may change.

    Args:
        free: further `section.key` that may change.

    Raises:
        ConfigError: no training there, or another one; the changed keys are named.
    """
    if not (folder / CONFIG).exists():
        raise ConfigError(f"{folder} has no training to resume; start it without --resume")
    before, now = _flat(read_yaml(folder / CONFIG)), _flat(to_dict(config))
    changed = [key for key in now if now[key] != before.get(key, now[key]) and not _may_change(key, free)]
    if changed:
        raise ConfigError(
            f"--resume continues the training in {folder}, but the configuration differs in {', '.join(changed)}; "
            "restore these, or start a new run with run=FOLDER"
        )


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide about the numbers of a training."""
    found = {}
    for name in ("tesseral", "torch", "numpy", "lightning", "rdkit"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _may_change(key: str, free: Collection[str]) -> bool:
    section, _, name = key.partition(".")
    if section == "training":
        return name not in COURSE
    return key == "run" or key in free


def _flat(data: dict[str, Any]) -> dict[str, str]:
    """`section.key` to the value as text, of a configuration's plain form."""
    flat = {}
    for section, value in data.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat.update({f"{section}.{key}".rstrip("."): json.dumps(v, sort_keys=True) for key, v in inner})
    return flat
