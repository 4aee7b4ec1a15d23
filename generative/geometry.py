"""Valences, bond lengths, angles and dihedrals of molecules, their distributions over a set, and RMSD."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..datasets.structure import Structure

BINS: dict[str, tuple[float, float, int]] = {  # lower end, width, number
    "valence": (-0.25, 0.5, 20),
    "bond": (0.5, 0.01, 300),  # Å
    "angle": (0.0, 0.1, 1801),  # degrees
    "dihedral": (0.0, 0.1, 1801),
}
UNITS = {"valence": "", "bond": "Å", "angle": "degree", "dihedral": "degree"}


@dataclass
class Distributions:
    """Counts by quantity and kind: valence and angle by the (central) element, bond and dihedral by the bond's order.

    A valence counts aromatic bonds as 1.5. Dihedrals are unsigned, 0..180 degrees, around the central bond.
    """

    counts: dict[str, dict[int, np.ndarray]] = field(default_factory=lambda: {name: {} for name in BINS})

    @classmethod
    def of(cls, structures: Iterable[Structure]) -> Distributions:
        """One pass over molecules with bonds."""
        found = cls()
        for structure in structures:
            found.add(structure)
        return found

    def add(self, structure: Structure) -> None:
        """Count one molecule."""
        for name, (kinds, values) in internal_coordinates(structure).items():
            self._count(name, kinds, values)

    def wasserstein(self, other: Distributions) -> dict[str, float]:
        """W1 of each quantity, in its unit: the mean over the kinds, weighted by their frequency in `other`.

        A kind that this set lacks counts as if all its values were in the lowest bin of `other`'s range.
        """
        result = {}
        for name, (_, width, bins) in BINS.items():
            reference = other.counts[name]
            total = sum(int(c.sum()) for c in reference.values())
            if not total:
                continue
            distance = 0.0
            for kind, counts in reference.items():
                mine = self.counts[name].get(kind)
                if mine is None or not mine.sum():
                    mine = np.eye(1, bins, int(np.flatnonzero(counts)[0]))[0]
                difference = np.cumsum(mine / mine.sum() - counts / counts.sum())
                distance += counts.sum() / total * np.abs(difference).sum() * width
            result[name] = float(distance)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: filled bins only."""
        return {
            name: {
                str(kind): {str(b): int(counts[b]) for b in np.flatnonzero(counts)} for kind, counts in kinds.items()
            }
            for name, kinds in self.counts.items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Distributions:
        found = cls()
        for name, kinds in data.items():
            for kind, filled in kinds.items():
                counts = np.zeros(BINS[name][2], dtype=np.int64)
                for b, count in filled.items():
                    counts[int(b)] = count
                found.counts[name][int(kind)] = counts
        return found

    def _count(self, name: str, kinds: np.ndarray, values: np.ndarray) -> None:
        low, width, bins = BINS[name]
        known = np.isfinite(values)
        kinds, values = kinds[known], values[known]
        places = np.clip((values - low) / width, 0, bins - 1).astype(np.int64)
        for kind in np.unique(kinds):
            counts = self.counts[name].setdefault(int(kind), np.zeros(bins, dtype=np.int64))
            counts += np.bincount(places[kinds == kind], minlength=bins)


def internal_coordinates(structure: Structure) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Quantity of :data:`BINS` -> (kinds, values) of all valences, bonds, angles and dihedrals, in a fixed order."""
    n = structure.n_atoms
    orders = np.zeros((n, n), dtype=np.int64)
    if structure.bonds is not None and len(structure.bonds):
        i, j, order = structure.bonds.T
        orders[i, j] = orders[j, i] = order
    x, z = structure.positions, structure.numbers
    i, j = np.nonzero(np.triu(orders))
    neighbours = [np.flatnonzero(row) for row in orders]
    return {
        "valence": (z, np.where(orders == 4, 1.5, orders).sum(1)),
        "bond": (orders[i, j], np.linalg.norm(x[i] - x[j], axis=1)),
        "angle": _angles(x, z, neighbours),
        "dihedral": _dihedrals(x, orders, neighbours, i, j),
    }


def superposed_rmsd(a: np.ndarray, b: np.ndarray) -> float:
    """RMSD (Å) of two sets of positions ``(n, 3)`` after the best translation and rotation (Kabsch)."""
    a, b = a - a.mean(0), b - b.mean(0)
    singular = np.linalg.svd(a.T @ b, compute_uv=False)
    if np.linalg.det(a.T @ b) < 0:
        singular[-1] *= -1
    square = (a**2).sum() + (b**2).sum() - 2 * singular.sum()
    return float(np.sqrt(max(square, 0.0) / len(a)))


def _angles(x: np.ndarray, z: np.ndarray, neighbours: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(central element, angle in degrees) of all pairs of bonds at an atom."""
    triples = [
        (a, centre, b)
        for centre, others in enumerate(neighbours)
        for k, a in enumerate(others)
        for b in others[k + 1 :]
    ]
    a, centre, b = np.array(triples, dtype=np.int64).reshape(-1, 3).T
    return z[centre], _between(x[a] - x[centre], x[b] - x[centre])


def _dihedrals(
    x: np.ndarray, orders: np.ndarray, neighbours: list[np.ndarray], i: np.ndarray, j: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(order of the central bond, unsigned dihedral in degrees) of all chains a-i-j-b."""
    chains = [
        (a, p, q, b)
        for p, q in zip(i, j, strict=True)
        for a in neighbours[p]
        if a != q
        for b in neighbours[q]
        if b not in (p, a)
    ]
    a, p, q, b = np.array(chains, dtype=np.int64).reshape(-1, 4).T
    axis = x[q] - x[p]
    first, second = np.cross(x[a] - x[p], axis), np.cross(x[b] - x[q], axis)
    return orders[p, q], _between(first, second)


def _between(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Angles in degrees between rows; 0 where one has no length."""
    lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    cosine = np.where(lengths > 0, (u * v).sum(1) / np.where(lengths > 0, lengths, 1.0), 1.0)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
