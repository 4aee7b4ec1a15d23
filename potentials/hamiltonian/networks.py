"""The networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ...datasets.errors import UserError
from . import ARCHITECTURES
from .base import HamiltonianModel
from .layout import OrbitalLayout


def architecture(name: str) -> type[HamiltonianModel]:
    """The class of an architecture.

    Raises:
        UserError: no such architecture.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"no Hamiltonian model is called {name!r}; there are {', '.join(ARCHITECTURES)}")
    module, _, cls = ARCHITECTURES[name].partition(":")
    found: type[HamiltonianModel] = getattr(import_module(f".{module}", __package__), cls)
    return found


def build(name: str, config: Mapping[str, Any], layout: OrbitalLayout, target: str = "delta") -> HamiltonianModel:
    """A fresh model.

    Args:
        name: architecture.
        config: plain hyper-parameters; "preset" names the preset that the others change.
        layout: orbitals of the elements that it shall know.
        target: "delta" or "full", see `base.HamiltonianModel`.

    Raises:
        UserError: unknown architecture, preset, hyper-parameter or target.
    """
    cls = architecture(name)
    return cls(cls.make_config(config), layout, target)


def from_header(header: Mapping[str, Any]) -> HamiltonianModel:
    """A fresh model from what `HamiltonianModel.header` gave.

    Raises:
        UserError: an architecture or hyper-parameter that this version does not know.
    """
    return architecture(header["architecture"]).from_header(header)
