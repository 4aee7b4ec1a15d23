"""The training domain of a model: how close atoms came, how many neighbours they had, the largest force.

Measured once over the training data, kept as plain data under "domain" in the checkpoint's header, and asked
during dynamics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .elements import symbol
from .neighbors import neighbor_list

if TYPE_CHECKING:
    from .structure import Structure

NEIGHBOR_RADIUS = 4.0  # Å, first and second shell


@dataclass(frozen=True)
class Domain:
    """Ranges seen in training.

    min_distance: Å by element pair, "C-H" with the lighter element second; neighbors: fewest and most atoms
    within `radius` Å of an atom, by element; max_force: eV/Å, None where the data had no forces.
    """

    min_distance: Mapping[str, float] = field(default_factory=dict)
    neighbors: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    radius: float = NEIGHBOR_RADIUS
    max_force: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the card."""
        return asdict(self)

    @classmethod
    def from_card(cls, header: Mapping[str, Any]) -> Domain:
        """The domain in a checkpoint's header; an empty one (nothing is known) where it has none."""
        values = card_entry(header, "domain") or {}
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        if "neighbors" in known:
            known["neighbors"] = {key: (int(low), int(high)) for key, (low, high) in known["neighbors"].items()}
        return cls(**known)


def card_entry(header: Mapping[str, Any], key: str) -> Any:
    """An entry of the card in a checkpoint's header, or of the header itself; None where there is none."""
    return {**header, **(header.get("card") or {})}.get(key)


def pair_name(first: int, second: int) -> str:
    """Name of an element pair, the heavier first: "C-H"."""
    return f"{symbol(max(first, second))}-{symbol(min(first, second))}"


def measure_domain(structures: Iterable[Structure], radius: float = NEIGHBOR_RADIUS) -> Domain:
    """The domain of a data set in one pass; distances and neighbour counts within `radius` Å."""
    shortest: dict[str, float] = {}
    counts: dict[str, tuple[int, int]] = {}
    largest: float | None = None
    for structure in structures:
        numbers = structure.numbers
        source, target, shifts = neighbor_list(structure.positions, structure.cell, structure.pbc, radius)
        vectors = structure.positions[source] - structure.positions[target] + shifts @ structure.cell
        lengths = np.linalg.norm(vectors, axis=1)
        first, second = numbers[source], numbers[target]
        pairs = np.maximum(first, second) * 1000 + np.minimum(first, second)
        for code in np.unique(pairs):
            name = pair_name(*divmod(int(code), 1000))
            shortest[name] = min(shortest.get(name, np.inf), float(lengths[pairs == code].min()))
        count = np.bincount(target, minlength=len(numbers))
        for z in np.unique(numbers):
            low, high = counts.get(symbol(int(z)), (10**9, 0))
            mine = count[numbers == z]
            counts[symbol(int(z))] = (min(low, int(mine.min())), max(high, int(mine.max())))
        if "forces" in structure.labels and len(numbers):
            norm = float(np.linalg.norm(structure.labels["forces"], axis=1).max())
            largest = norm if largest is None else max(largest, norm)
    return Domain(shortest, counts, radius, largest)
