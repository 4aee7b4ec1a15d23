"""Energy models, their losses and task, and the weights that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.errors import UserError

if TYPE_CHECKING:
    from ..datasets.statistics import Statistics
    from .base import Potential

ARCHITECTURES = {"tesseral": "tesseral:Tesseral", "facet": "facet:Facet"}
"""Name in configs and checkpoints -> module:class in this room."""

__all__ = ["ARCHITECTURES", "architecture", "build", "load", "locate", "save", "shipped"]


def architecture(name: str) -> type[Potential]:
    """The class of an architecture.

    Raises:
        UserError: no such architecture.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"no potential is called {name!r}; there are {', '.join(sorted(ARCHITECTURES))}")
    module, _, cls = ARCHITECTURES[name].partition(":")
    found: type[Potential] = getattr(import_module(f".{module}", __name__), cls)
    return found


def build(name: str, config: dict[str, Any], statistics: Statistics) -> Potential:
    """A fresh model from its architecture's name, plain hyper-parameters and the statistics of the training data.

    Raises:
        UserError: unknown architecture or hyper-parameter.
    """
    return architecture(name).from_config(config, statistics)


def shipped() -> dict[str, dict[str, Any]]:
    """Headers of the potentials that come with the package, by name; loads no tensor."""
    from ..training import shipped as shelf

    return shelf.shipped("potentials")


def locate(name_or_path: str | Path) -> Path:
    """Path of a shipped potential's name, or of a file.

    Raises:
        UserError: neither a shipped name nor an existing file.
    """
    from ..training import shipped as shelf

    return shelf.locate(name_or_path, "potentials")


def load(name_or_path: str | Path, *, device: str = "cpu", dtype: Any = None) -> Potential:
    """A trained potential, in evaluation mode.

    Args:
        name_or_path: name of a shipped model, or path of a checkpoint.
        device: where to put it.
        dtype: torch dtype or its name ("float32", "float64"); None keeps the stored one.

    Raises:
        UserError: no such model, a file that is no potential, or one that this version cannot build.
    """
    import torch

    from ..datasets.statistics import Statistics
    from ..training.checkpoint import read_checkpoint

    path = locate(name_or_path)
    if path.suffix == ".pt2":
        raise UserError(
            f"{path} is an exported artefact, which `tesseral md`, `tesseral relax` and the calculator run; give the "
            "checkpoint that it was exported from here"
        )
    header, tensors = read_checkpoint(path)
    if header.get("room") != "potentials":
        raise UserError(f"{path} holds a model of room {header.get('room')!r}, not a potential")
    references = {int(z): float(e) for z, e in header["reference_energies"].items()}
    statistics = Statistics(
        elements=list(header["elements"]),
        reference_energies=references,
        force_rms=1.0,
        energy_std_per_atom=1.0,
        mean_neighbors=1.0,
        n_frames=0,
        n_atoms=0,
    )
    model = build(header["architecture"], header["config"], statistics)
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


def save(model: Potential, path: str | Path, card: Mapping[str, Any] | None = None, *, force: bool = False) -> Path:
    """Write a potential to one checkpoint file.

    Args:
        model: the potential.
        path: file to write, usually ``*.safetensors``.
        card: more of the header: provenance, metrics, licence, what the model is for.
        force: replace an existing file.

    Raises:
        UserError: the file exists and force is False.
    """
    from ..training.checkpoint import write_checkpoint

    header = {
        **(card or {}),
        "room": "potentials",
        "architecture": model.architecture,
        "config": model.config_dict(),
        "units": {"energy": "eV", "length": "Å"},
        "elements": list(model.elements),
        "cutoff": model.cutoff,
        "reference_energies": {str(z): e for z, e in model.reference_energies.items()},
        "dtype": str(model.dtype).removeprefix("torch."),
        "conservative": model.conservative,
    }
    return write_checkpoint(Path(path), model.state_dict(), header, force=force)
