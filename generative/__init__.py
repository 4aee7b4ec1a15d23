"""Generators of molecules and trajectories: noise processes, networks, samplers, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.errors import UserError

if TYPE_CHECKING:
    from ..datasets.structure import Structure
    from .conditions import Conditions
    from .model import EqgatDiff
    from .pocket import PocketFacts
    from .vocabulary import Vocabulary

ARCHITECTURES = {"eqgat-diff": "model:EqgatDiff"}
"""Name in configs and checkpoints -> module:class in this room."""

__all__ = ["ARCHITECTURES", "architecture", "build", "generate", "load", "save", "shipped"]


def architecture(name: str) -> type[EqgatDiff]:
    """The class of an architecture.

    Raises:
        UserError: no such architecture.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"no generator is called {name!r}; there are {', '.join(sorted(ARCHITECTURES))}")
    module, _, cls = ARCHITECTURES[name].partition(":")
    found: type[EqgatDiff] = getattr(import_module(f".{module}", __name__), cls)
    return found


def build(
    name: str,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    *,
    conditions: Conditions | None = None,
    pockets: PocketFacts | None = None,
) -> EqgatDiff:
    """A fresh model from its architecture's name, plain hyper-parameters and what is known of its data.

    Raises:
        UserError: unknown architecture or hyper-parameter.
    """
    return architecture(name).from_config(config, vocabulary, conditions=conditions, pockets=pockets)


def shipped() -> dict[str, dict[str, Any]]:
    """Headers of the generators that come with the package, by name; loads no tensor."""
    from ..training import shipped as shelf

    return shelf.shipped("generative")


def load(name_or_path: str | Path, *, device: str = "cpu", dtype: Any = None) -> EqgatDiff:
    """A trained generator, in evaluation mode; its header is `.card`.

    Args:
        name_or_path: name of a shipped model, or a checkpoint: one file, or a folder of small ones.
        device: where to put it.
        dtype: torch dtype or its name; None keeps the stored one.

    Raises:
        UserError: no such model, a file that is no generator, or one that this version cannot build.
    """
    import torch

    from ..training.checkpoint import read_checkpoint
    from ..training.shipped import locate
    from .conditions import Conditions
    from .pocket import PocketFacts
    from .vocabulary import Vocabulary

    path = locate(name_or_path, "generative")
    header, tensors = read_checkpoint(path)
    if header.get("room") != "generative":
        raise UserError(f"{path} holds a model of room {header.get('room')!r}, not a generator of molecules")
    model = build(
        header["architecture"],
        header["config"],
        Vocabulary.from_dict(header["vocabulary"]),
        conditions=Conditions.from_dict(header["conditions"]) if "conditions" in header else None,
        pockets=PocketFacts.from_dict(header["pockets"]) if "pockets" in header else None,
    )
    stored = getattr(torch, header.get("dtype", "float32"))
    model.to(stored)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise UserError(
            f"{path} does not fit architecture {header['architecture']}: missing {missing}, unknown {unexpected}"
        )
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model.to(device=device, dtype=wanted or stored)
    model.card = header
    return model.eval()


def generate(
    model: EqgatDiff | str | Path, n: int, *, steps: int | None = None, device: str = "cpu", **settings: Any
) -> list[Structure]:
    """Draw `n` molecules; `structure.to_rdkit(sanitize=False)` makes RDKit molecules of them.

    Args:
        model: a generator, the name of a shipped one, or the path of a checkpoint.
        n: number of molecules.
        steps: network calls; None: one for each noise level of the model.
        device: for a model that is loaded here.
        settings: `seed`, `atoms`, `fixed`, `properties`, `pocket` and more of `EqgatDiff.sample`.

    Raises:
        UserError: no such model, or wishes that it cannot meet.
    """
    from .sampler import SamplerOptions

    if steps is not None:
        settings["options"] = SamplerOptions(calls=steps)
    generator = load(model, device=device) if isinstance(model, str | Path) else model
    return generator.sample(n, **settings)


def save(model: EqgatDiff, path: str | Path, card: Mapping[str, Any] | None = None, *, force: bool = False) -> Path:
    """Write a generator to one checkpoint file; `card` is more of its header: provenance, metrics, licence.

    Raises:
        UserError: the file exists and force is False.
    """
    from ..training.checkpoint import write_checkpoint

    header = {
        **(card or {}),
        "room": "generative",
        "architecture": model.architecture,
        "config": model.config_dict(),
        "vocabulary": model.vocabulary.to_dict(),
        "elements": list(model.vocabulary.atoms["element"].values),
        **({} if model.conditions is None else {"conditions": model.conditions.to_dict()}),
        **({} if model.pockets is None else {"pockets": model.pockets.to_dict()}),
        "units": {"length": "Å"},
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return write_checkpoint(Path(path), model.state_dict(), header, force=force)
