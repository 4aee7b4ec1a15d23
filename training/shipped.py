"""Trained models that come with the package: `weights/NAME.safetensors` in the room that made them, found by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..datasets.errors import UserError
from .checkpoint import is_sharded, read_header

ROOMS = {"potentials": "potentials", "generative": "generative", "hamiltonian": "potentials/hamiltonian"}
"""Room in a checkpoint's header -> its folder in the package."""


def weights(room: str) -> Path:
    """Folder of a room's shipped models, which need not exist."""
    return Path(__file__).parent.parent / ROOMS[room] / "weights"


def shipped(room: str) -> dict[str, dict[str, Any]]:
    """Headers of a room's shipped models, by name; loads no tensor."""
    return {path.stem: read_header(path) for path in sorted(weights(room).glob("*.safetensors"))}


def locate(name_or_path: str | Path, room: str | None = None) -> Path:
    """Path of a shipped model's name, or of a checkpoint: a file, or a folder of small ones.

    Args:
        name_or_path: without a slash it may be a shipped name; a file of that name comes first.
        room: the only room whose shipped models count; None: all.

    Raises:
        UserError: neither a shipped name nor an existing checkpoint.
    """
    path = Path(name_or_path)
    if path.is_file() or is_sharded(path):
        return path
    rooms = [room] if room else list(ROOMS)
    named = {p.stem: p for r in rooms for p in sorted(weights(r).glob("*.safetensors"))}
    if str(name_or_path) in named:
        return named[str(name_or_path)]
    raise UserError(
        f"no model {str(name_or_path)!r}: neither a file nor a shipped model ({', '.join(named) or 'none'})"
    )
