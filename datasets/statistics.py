"""What a potential must know about its training data, in one streaming pass.

The reference energy of an element is the energy of its isolated atom where the data (or the user) give one,
else a least squares fit of the energies per atom to the composition. What a potential learns is the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import elements
from .errors import DataError
from .neighbors import neighbor_list
from .structure import Structure

NEIGHBOR_FRAMES = 1000  # frames of which neighbours are counted; more do not change the mean
RANK_TOLERANCE = 1e-6  # of the singular values of the atomic fractions
SPREAD = 1e-3  # eV; isolated atoms of one element that differ by more are told apart in a note


@dataclass
class Statistics:
    """Numbers of one data set.

    elements: atomic numbers, ascending; reference_energies: eV per element; force_rms: of all components,
    eV/Å (0 without forces); energy_std_per_atom: eV, of (E − sum of references) / n_atoms over frames;
    mean_neighbors: per atom within the cutoff; n_frames, n_atoms: totals; label_counts: frames that have a
    label; notes: what a user should know.
    """

    elements: list[int]
    reference_energies: dict[int, float]
    force_rms: float
    energy_std_per_atom: float
    mean_neighbors: float
    n_frames: int
    n_atoms: int
    label_counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Group:
    """Running mean and sum of squared deviations (Welford) of the energies per atom of one composition."""

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self.deviations += delta * (value - self.mean)


def compute_statistics(
    source: Sequence[Structure],
    cutoff: float,
    *,
    isolated: Mapping[int, float] | None = None,
    required: Sequence[str] = ("energy",),
    progress: Callable[[Iterable[Structure]], Iterable[Structure]] | None = None,
) -> Statistics:
    """Statistics of a data set in one pass that keeps no frame.

    Arguments: cutoff Å, for neighbours; isolated: energies eV of isolated atoms by atomic number, before any
    in the data; required: labels that at least one frame must have; progress: wraps the iteration (a progress
    bar).
    Raises DataError for an empty source, a required label that no frame has (naming the keys present), labels
    that are not finite, and when no frame has an energy and `isolated` does not cover all elements.
    """
    collected = Collector(len(source), cutoff)
    for index, structure in enumerate(progress(source) if progress else source):
        try:
            collected.add(index, structure)
        except DataError as error:
            raise DataError(str(error), _where(source, index)) from error
    collected.check(required, getattr(source, "name", ""))
    return collected.result(isolated)


def _where(source: Sequence[Structure], index: int) -> str:
    return source.where(index) if hasattr(source, "where") else f"frame {index}"


class Collector:
    """Everything that is summed up while frames stream by: `add` every frame, then ask for `result`.

    Arguments: n_frames to come; cutoff Å, for neighbours, which are counted in up to NEIGHBOR_FRAMES frames.
    """

    def __init__(self, n_frames: int, cutoff: float) -> None:
        self.cutoff = cutoff
        self.stride = max(1, n_frames // NEIGHBOR_FRAMES)
        self.n_frames = self.n_atoms = 0
        self.groups: dict[tuple[tuple[int, int], ...], _Group] = {}
        self.atoms: dict[int, list[float]] = {}
        self.elements: set[int] = set()
        self.label_counts: dict[str, int] = {}
        self.other_keys: set[str] = set()
        self.force_squares, self.force_components = 0.0, 0
        self.neighbors, self.centres = 0, 0

    def add(self, index: int, frame: Structure) -> None:
        """Take in one frame; DataError when a label is not finite."""
        self.n_frames += 1
        self.n_atoms += frame.n_atoms
        self.other_keys |= frame.info.keys() | frame.arrays.keys()
        for key, value in frame.labels.items():
            self.label_counts[key] = self.label_counts.get(key, 0) + 1
            if not np.isfinite(value).all():
                raise DataError(f"the label {key!r} is not finite; remove the frame (`tesseral data check` lists all)")
        present, counts = np.unique(frame.numbers, return_counts=True)
        self.elements.update(present.tolist())
        if "forces" in frame.labels:
            forces = frame.labels["forces"]
            self.force_squares += float(np.square(forces).sum())
            self.force_components += forces.size
        lonely = frame.n_atoms == 1 and self._count_neighbors(frame) == 0
        if index % self.stride == 0 and frame.n_atoms and not lonely:
            self.neighbors += self._count_neighbors(frame)
            self.centres += frame.n_atoms
        if "energy" in frame.labels and frame.n_atoms:
            energy = float(frame.labels["energy"])
            if lonely and not frame.charge:
                self.atoms.setdefault(int(present[0]), []).append(energy)
            elif not lonely:
                composition = tuple(zip(present.tolist(), counts.tolist(), strict=True))
                self.groups.setdefault(composition, _Group()).add(energy / frame.n_atoms)

    def _count_neighbors(self, frame: Structure) -> int:
        return len(neighbor_list(frame.positions, frame.cell, frame.pbc, self.cutoff)[0])

    def check(self, required: Sequence[str], name: str) -> None:
        """Raise DataError when there was no frame, or no frame had a required label."""
        if self.n_frames == 0:
            raise DataError("the data set has no frames", name)
        for label in required:
            if label not in self.label_counts:
                labels = ", ".join(sorted(self.label_counts)) or "none"
                others = ", ".join(sorted(self.other_keys)) or "none"
                raise DataError(
                    f"no frame has the label {label!r}; labels present: {labels}; other keys: {others}; "
                    f"name the key that holds it (keys: {label}=KEY)",
                    name,
                )

    def result(self, isolated: Mapping[int, float] | None = None) -> Statistics:
        """The statistics of the frames so far; DataError when there is no energy to fit references to."""
        notes: list[str] = []
        numbers = sorted(self.elements)
        known = {z: self._atom_energy(z, notes) for z in self.atoms} | dict(isolated or {})
        references = {z: float(known[z]) for z in numbers if z in known}
        if missing := [z for z in numbers if z not in references]:
            references |= self._fit(missing, references, notes)
        if self.force_components == 0:
            notes.append("no frame has forces")
        return Statistics(
            elements=numbers,
            reference_energies={z: references[z] for z in numbers},
            force_rms=float(np.sqrt(self.force_squares / max(1, self.force_components))),
            energy_std_per_atom=self._spread(references),
            mean_neighbors=self.neighbors / max(1, self.centres),
            n_frames=self.n_frames,
            n_atoms=self.n_atoms,
            label_counts=dict(sorted(self.label_counts.items())),
            notes=notes,
        )

    def _atom_energy(self, z: int, notes: list[str]) -> float:
        """Energy of the isolated atom in the data: the lowest, should there be several."""
        energies = self.atoms[z]
        if max(energies) - min(energies) > SPREAD:
            spread = max(energies) - min(energies)
            notes.append(
                f"{len(energies)} isolated {elements.symbol(z)} atoms differ by {spread:.3f} eV; "
                "the lowest is the reference"
            )
        return min(energies)

    def _fit(self, missing: list[int], known: dict[int, float], notes: list[str]) -> dict[int, float]:
        """Least squares of energies per atom on atomic fractions; frames weigh equally, `known` is fixed."""
        column = {z: k for k, z in enumerate(missing)}
        rows, values = [], []
        for composition, group in self.groups.items():
            n_atoms = sum(count for _, count in composition)
            row, value = np.zeros(len(missing)), group.mean
            for z, count in composition:
                if z in column:
                    row[column[z]] = count / n_atoms
                else:
                    value -= known[z] * count / n_atoms
            rows.append(row * np.sqrt(group.count))
            values.append(value * np.sqrt(group.count))
        names = ", ".join(elements.symbol(z) for z in missing)
        if not rows:
            raise DataError(f"no energies to fit the reference energies of {names}; give isolated atoms")
        solution, _, rank, _ = np.linalg.lstsq(np.array(rows), np.array(values), rcond=RANK_TOLERANCE)
        if rank < len(missing):
            notes.append(
                f"the compositions fix only {rank} of the {len(missing)} reference energies ({names}): the "
                "smallest that fit were taken; they serve for these compositions only, give isolated atoms "
                "to have physical ones"
            )
        else:
            notes.append(f"reference energies of {names} from least squares; isolated atoms would be physical")
        return dict(zip(missing, solution.tolist(), strict=True))

    def _spread(self, references: dict[int, float]) -> float:
        """Standard deviation over frames of (E − references) / n_atoms."""
        counts, means, deviations = [], [], 0.0
        for composition, group in self.groups.items():
            n_atoms = sum(count for _, count in composition)
            counts.append(group.count)
            means.append(group.mean - sum(references[z] * count for z, count in composition) / n_atoms)
            deviations += group.deviations
        if not counts:
            return 0.0
        weights, centres = np.array(counts), np.array(means)
        between = (weights * np.square(centres - np.average(centres, weights=weights))).sum()
        return float(np.sqrt((between + deviations) / weights.sum()))
