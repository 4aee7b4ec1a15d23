"""Hamiltonian (Fock) matrices of molecules: orbital layout, labels, networks, and their use in quantum chemistry.

Inside this room energies are in Hartree and lengths in Å; matrices at every public edge are in PySCF's orbital order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.errors import UserError

if TYPE_CHECKING:
    from ...datasets.structure import Structure
    from .base import HamiltonianModel
    from .scf import Prediction

ARCHITECTURES = {"qhnet": "qhnet:QHNet", "sphnet": "sphnet:SPHNet"}
"""Name in configs and checkpoints -> module:class in this room."""

__all__ = ["ARCHITECTURES", "load", "predict", "save", "shipped"]


def shipped() -> dict[str, dict[str, Any]]:
    """Headers of the Hamiltonian models that come with the package, by name; loads no tensor."""
    from ...training import shipped as shelf

    return shelf.shipped("hamiltonian")


def load(name_or_path: str | Path, *, device: str = "cpu", dtype: Any = None) -> HamiltonianModel:
    """A trained Hamiltonian network, in evaluation mode; its header is `.card`.

    Args:
        name_or_path: name of a shipped model, or path of a checkpoint.
        device: where to put it.
        dtype: torch dtype or its name; None keeps the stored one.

    Raises:
        UserError: no such model, a file that is no Hamiltonian model, or one that this version cannot build.
    """
    import torch

    from ...training.checkpoint import read_checkpoint
    from ...training.shipped import locate
    from .networks import from_header

    path = locate(name_or_path, "hamiltonian")
    header, tensors = read_checkpoint(path)
    if header.get("room") != "hamiltonian":
        raise UserError(f"{path} holds a model of room {header.get('room')!r}, not a Hamiltonian model")
    model = from_header(header)
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


def save(
    model: HamiltonianModel, path: str | Path, card: Mapping[str, Any] | None = None, *, force: bool = False
) -> Path:
    """Write a Hamiltonian network to one checkpoint file.

    Args:
        model: the network.
        path: file to write, usually ``*.safetensors``.
        card: more of the header; "level", the level of theory (`Level.header`), is needed to use the predictions.
        force: replace an existing file.

    Raises:
        UserError: the file exists and force is False.
    """
    from ...training.checkpoint import write_checkpoint

    header = {
        **(card or {}),
        "room": "hamiltonian",
        **model.header(),
        "units": {"energy": "Eh", "length": "Å"},
        "elements": list(model.layout.elements),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return write_checkpoint(Path(path), model.state_dict(), header, force=force)


def predict(
    model: HamiltonianModel | str | Path, molecules: Structure | list[Structure], *, device: str = "cpu"
) -> Any:
    """Fock matrix, orbitals, density, dipole and charges of a molecule, in PySCF's orbital order; needs PySCF.

    Args:
        model: a network, the name of a shipped one, or the path of a checkpoint.
        molecules: one neutral closed-shell molecule, or several.
        device: for a model that is loaded here.

    Returns:
        A `scf.Prediction`, or a list of them.

    Raises:
        UserError: no such model, or a molecule that it does not cover.
    """
    from ...datasets.structure import Structure
    from .scf import predict_all

    found = load(model, device=device) if isinstance(model, str | Path) else model
    several = [molecules] if isinstance(molecules, Structure) else molecules
    predictions: list[Prediction] = list(predict_all(found, several))
    return predictions[0] if isinstance(molecules, Structure) else predictions
