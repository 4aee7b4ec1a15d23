"""Public contracts that models and integrators must keep, for this package and for third parties."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "PotentialContract": "contract",
    "perturb": "contract",
    "SymmetryReport": "symmetry",
    "symmetry_report": "symmetry",
    "force_error": "derivatives",
    "stress_error": "derivatives",
}

__all__ = ["PotentialContract", "SymmetryReport", "force_error", "perturb", "stress_error", "symmetry_report"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
