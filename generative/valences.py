"""Which valences the atoms of a data set have: the learned table by which generated atoms are judged.

A valence is the pair (number of aromatic bonds, sum of the other bond orders), so that aromatic bonds need neither a
fractional order nor a Kekulé structure (after "GEOM-Drugs revisited", 2025).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..datasets.structure import Structure

AROMATIC, AROMATIC_ORDER = 4, 1.5  # code in `Structure.bonds`; what such a bond counts in a sum of orders
Kind = tuple[int, int]  # atomic number, formal charge
Valence = tuple[int, int]  # aromatic bonds, sum of the other orders


@dataclass
class ValenceTable:
    """How often each valence occurs, by element and charge; bonds are counted in the form in which they are given.

    A table of molecules without hydrogen atoms, or of Kekulé structures, judges others of the same form only.
    """

    counts: dict[Kind, Counter[Valence]] = field(default_factory=dict)

    @classmethod
    def of(cls, structures: Iterable[Structure]) -> ValenceTable:
        """One pass over molecules with bonds; formal charges in `arrays["formal_charges"]`, absent = 0."""
        found = cls()
        for structure in structures:
            for kind, valence in _atoms(structure):
                found.counts.setdefault(kind, Counter())[valence] += 1
        return found

    def allows(self, structure: Structure) -> np.ndarray:
        """Whether each atom ``(n,)`` has a valence that its element and charge have in the data."""
        return np.array([valence in self.counts.get(kind, ()) for kind, valence in _atoms(structure)], dtype=bool)

    def largest(self) -> dict[Kind, float]:
        """The largest sum of bond orders by element and charge, an aromatic bond 1.5."""
        return {kind: max(AROMATIC_ORDER * a + other for a, other in counts) for kind, counts in self.counts.items()}

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Plain data for JSON: ``{"7:+1": {"0:4": 12}}``."""
        return {
            f"{z}:{q:+d}": {f"{a}:{other}": n for (a, other), n in sorted(counts.items())}
            for (z, q), counts in sorted(self.counts.items())
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, int]]) -> ValenceTable:
        return cls(
            {
                _pair(kind): Counter({_pair(valence): int(n) for valence, n in counts.items()})
                for kind, counts in data.items()
            }
        )


def _atoms(structure: Structure) -> Iterable[tuple[Kind, Valence]]:
    n = structure.n_atoms
    bonds = structure.bonds if structure.bonds is not None else np.zeros((0, 3), dtype=np.int64)
    ends, orders = bonds[:, :2].T.ravel(), np.tile(bonds[:, 2], 2)
    aromatic = orders == AROMATIC
    rings = np.bincount(ends[aromatic], minlength=n)
    others = np.bincount(ends[~aromatic], weights=orders[~aromatic], minlength=n).astype(np.int64)
    charges = structure.arrays.get("formal_charges", np.zeros(n, dtype=np.int64))
    kinds = zip(structure.numbers.tolist(), charges.tolist(), strict=True)
    return zip(kinds, zip(rings.tolist(), others.tolist(), strict=True), strict=True)


def _pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition(":")
    return int(first), int(second)
