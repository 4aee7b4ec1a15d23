"""Which shipped model fits a structure: it knows all elements and was trained on such boundary conditions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..datasets.domain import card_entry
from ..datasets.elements import symbol
from ..datasets.errors import UserError

if TYPE_CHECKING:
    from ase import Atoms


def choose_model(structures: Iterable[Atoms]) -> str:
    """Name of the first shipped model that covers all these structures.

    A model fits when its elements include all of theirs and the "periodic" of its card (True: crystals and
    slabs, False: molecules, absent: both) agrees with each structure. Raises UserError with the list of
    models when none does.
    """
    from ..potentials import shipped

    elements: set[int] = set()
    periodic: set[bool] = set()
    for atoms in structures:
        elements.update(int(z) for z in atoms.numbers)
        periodic.add(bool(atoms.pbc.any()))
    models = shipped()
    for name, header in models.items():
        if elements <= _elements(header) and _boundary(header) in (None, *periodic) and len(periodic) <= _kinds(header):
            return name
    kinds = " and ".join("periodic" if p else "non-periodic" for p in sorted(periodic))
    known = "; ".join(f"{name}: {_describe(header)}" for name, header in models.items()) or "none"
    raise UserError(
        f"no shipped model covers {' '.join(symbol(z) for z in sorted(elements))} ({kinds}); shipped models: "
        f"{known}. Give your own with --model FILE"
    )


def _elements(header: dict[str, Any]) -> set[int]:
    return {int(z) for z in header.get("elements", ())}


def _boundary(header: dict[str, Any]) -> bool | None:
    value = card_entry(header, "periodic")
    return None if value is None else bool(value)


def _kinds(header: dict[str, Any]) -> int:
    """How many kinds of boundary (periodic, not) the model covers."""
    return 2 if _boundary(header) is None else 1


def _describe(header: dict[str, Any]) -> str:
    names = " ".join(symbol(z) for z in sorted(_elements(header)))
    return names + {None: "", True: " (periodic)", False: " (molecules)"}[_boundary(header)]
