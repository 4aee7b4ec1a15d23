"""What the commands share: common options, JSON results, progress bars, care for existing files."""

import argparse
import json
import os
import tempfile
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

COMMAND_LINE: ContextVar[tuple[str, ...]] = ContextVar("command_line", default=("tesseral",))
T = TypeVar("T")

_OPTIONS: dict[str, dict[str, Any]] = {
    "seed": {"type": int, "default": 0, "metavar": "N", "help": "seed of all random choices (default 0)"},
    "device": {"default": "cpu", "help": "torch device: cpu, cuda, cuda:1 … (default cpu)"},
    "json": {"metavar": "FILE", "type": Path, "help": "also write the numbers to this JSON file"},
    "force": {"action": "store_true", "help": "overwrite existing output"},
}


def add_common(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the common options of these names (any of seed, device, json, force) to a command's parser."""
    for name in names:
        parser.add_argument(f"--{name}", **_OPTIONS[name])


def refuse_overwrite(path: str | Path, force: bool) -> None:
    """Raise `UserError` when `path` exists and the user did not say --force."""
    if Path(path).exists() and not force:
        from ..datasets.errors import UserError

        raise UserError(f"{path} exists already; choose another name or say --force to replace it")


def check_device(name: str) -> str:
    """The device's name when torch can use it; `UserError` naming the usable ones otherwise."""
    import torch

    from ..datasets.errors import UserError

    usable = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device name; usable here: {', '.join(usable)}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: not on this machine; usable here: {', '.join(usable)}")
    return name


def versions() -> dict[str, str]:
    """Versions of tesseral, Python and the libraries that decide about numbers; none is imported."""
    import platform
    from importlib import metadata

    from .. import __version__

    found = {"tesseral": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "scipy", "ase", "h5py", "lightning", "vesin", "rdkit", "pymatgen"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: str | Path, data: dict[str, Any]) -> None:
    """Write `data` with the command line and versions inside to `path`, atomically.

    numpy and torch scalars and arrays become plain numbers and lists.
    """
    import shlex

    record = {**data, "command": shlex.join(COMMAND_LINE.get()), "versions": versions()}
    write_text(path, json.dumps(record, indent=2, default=_plain, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: the old content stays until the new one is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def progress(items: Iterable[T], *, description: str, total: int | None = None, unit: str = "") -> Iterable[T]:
    """`items` with a progress bar on stderr; silent where stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, unit=f" {unit}", disable=None, leave=False)


def _umask() -> int:
    """The process's file mode mask (it can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain(value: Any) -> Any:
    """A JSON-able form of numpy and torch values and of paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} to JSON")
