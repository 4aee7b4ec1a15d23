"""One streaming pass that notes a few numbers of every frame; the checks work on these notes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import elements
from ..errors import DataError
from ..neighbors import neighbor_list
from ..structure import Structure

REACH = 1.5  # neighbours are looked for up to this multiple of the largest bond of the frame
MOST_NEIGHBORS = 200  # per atom, on average
TOLERANCE = 1e-3  # of fractional coordinates that count as equal, roughly


@dataclass
class Record:
    """Notes on one frame.

    Hashes: atoms (numbers in order and pbc), cell (periodic axes, 0.01 Å), geometry (exact to 1e-6 Å),
    crystal (fractional coordinates, None without three periodic axes). nearest: smallest distance over the
    sum of covalent radii, of all pairs; bonded: median over atoms of the same for their nearest neighbour
    (inf without any in reach).
    """

    fault: str | None = None
    n_atoms: int = 0
    composition: tuple[tuple[int, int], ...] = ()
    atoms: str = ""
    cell: str = ""
    geometry: str = ""
    crystal: str | None = None
    labels: frozenset[str] = frozenset()
    energy: float | None = None
    force_rms: float | None = None
    force_max: float | None = None
    force_max_atom: int = 0
    net_force: float | None = None
    stress_rms: float | None = None
    nearest: float = np.inf
    nearest_pair: tuple[int, int] = (0, 0)
    bonded: float = np.inf
    volume_per_atom: float | None = None
    states: frozenset[str] = frozenset()


@dataclass
class Survey:
    """All notes, and what the frames hold besides labels. `ok`: indices of the frames without a fault."""

    records: list[Record] = field(default_factory=list)
    other_keys: set[str] = field(default_factory=set)

    @property
    def ok(self) -> list[int]:
        return [i for i, record in enumerate(self.records) if record.fault is None]

    def having(self, *labels: str) -> list[int]:
        """Indices of the sound frames that have all these labels."""
        return [i for i in self.ok if self.records[i].labels.issuperset(labels)]


def survey(
    source: Sequence[Structure], progress: Callable[[Iterable[Structure]], Iterable[Structure]] | None = None
) -> Survey:
    """Note the numbers of every frame of `source` in one pass."""
    found = Survey()
    for structure in progress(source) if progress else source:
        found.other_keys |= structure.info.keys() | structure.arrays.keys()
        try:
            structure.validate()
            found.records.append(_record(structure))
        except DataError as error:
            found.records.append(Record(fault=str(error), n_atoms=structure.n_atoms))
    return found


def _record(s: Structure) -> Record:
    present, counts = np.unique(s.numbers, return_counts=True)
    lattice = s.cell * s.pbc[:, None]
    record = Record(
        n_atoms=s.n_atoms,
        composition=tuple(zip(present.tolist(), counts.tolist(), strict=True)),
        atoms=_hash(s.numbers, s.pbc),
        cell=_hash(np.round(lattice / 0.01 + 0.237).astype(np.int64)),
        geometry=_hash(s.numbers, s.pbc, np.round(np.vstack([s.positions, lattice]) * 1e6).astype(np.int64)),
        labels=frozenset(s.labels),
        states=frozenset(name for name in ("charge", "spin") if getattr(s, name) is not None),
    )
    if s.pbc.all():
        record.crystal = _crystal_hash(s)
        record.volume_per_atom = s.volume / s.n_atoms
    if "energy" in s.labels:
        record.energy = float(s.labels["energy"])
    if "forces" in s.labels:
        forces = s.labels["forces"]
        lengths = np.linalg.norm(forces, axis=1)
        record.force_rms = float(np.sqrt(np.square(forces).mean()))
        record.force_max, record.force_max_atom = float(lengths.max()), int(lengths.argmax())
        record.net_force = float(np.linalg.norm(forces.sum(axis=0)))
    if "stress" in s.labels:
        record.stress_rms = float(np.sqrt(np.square(s.labels["stress"]).mean()))
    _note_distances(record, s)
    return record


def _note_distances(record: Record, s: Structure) -> None:
    radii = elements.COVALENT_RADII[s.numbers]
    reach = REACH * 2 * float(radii.max())
    if s.pbc.all():  # in a cell far too small (nm read as Å) the nearest atoms are enough
        reach = min(reach, (3 * MOST_NEIGHBORS / (4 * np.pi) * s.volume / s.n_atoms) ** (1 / 3))
    source, target, shifts = neighbor_list(s.positions, s.cell, s.pbc, reach)
    if len(source) == 0:
        return
    vectors = s.positions[source] + shifts @ s.cell - s.positions[target]
    ratio = np.linalg.norm(vectors, axis=1) / (radii[source] + radii[target])
    closest = int(ratio.argmin())
    record.nearest, record.nearest_pair = float(ratio[closest]), (int(target[closest]), int(source[closest]))
    per_atom = np.full(s.n_atoms, np.inf)
    np.minimum.at(per_atom, target, ratio)
    record.bonded = float(np.median(per_atom))


def _crystal_hash(s: Structure) -> str:
    """Equal for frames that differ by a homogeneous strain: fractional coordinates relative to atom 0, on a circle."""
    fractional = np.linalg.solve(s.cell.T, (s.positions - s.positions[0]).T).T
    angle = 2 * np.pi * fractional
    circle = np.concatenate([np.cos(angle), np.sin(angle)])  # the circle has no edge where 0.999 and 0.001 part
    return _hash(s.numbers, np.round(circle / (2 * np.pi * TOLERANCE) + 0.2371).astype(np.int64))


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for array in arrays:
        digest.update(np.ascontiguousarray(array + 0).tobytes())
    return digest.hexdigest()
