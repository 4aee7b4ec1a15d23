"""Checks of energies: unit by their size, references, outliers, several codes in one set, constant labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import elements
from ..structure import Structure
from ..units import ENERGY, HARTREE
from .findings import ENERGY_UNIT, TWO_KINDS, Finding
from .pairs import Pair
from .survey import Survey

# Total energies of the neutral atoms H to Ar, Hartree, Hartree–Fock limit (Koga et al., Int. J. Quantum Chem. 1999, 71,
# 491); heavier ones from the formula below.
ATOM_ENERGIES = [
    0.5, 2.8617, 7.4327, 14.573, 24.529, 37.689, 54.401, 74.809, 99.409, 128.547, 161.859, 199.615, 241.877, 288.854,
    340.719, 397.505, 459.482, 526.818,
]  # fmt: skip
SIZE_TOLERANCE = {True: 0.03, False: 0.06}  # light elements only; with heavy ones (relativistic shifts)
LAST_WITHOUT_CORE = 36  # beyond krypton all-electron bases of chemists hide the core in a pseudopotential
OUTLIER = 20.0  # robust standard deviations
OUTLIER_FLOOR = 1.0  # eV/atom
GAP = 6.0  # times the spread of either side
GAP_FLOOR, GAP_SURE = 0.03, 1.0  # eV/atom; between them pairs of similar frames must confirm the gap
MIN_SIDE = 0.05  # of the frames on either side of the gap
JUMP_DISPLACEMENT, JUMP_PAIRS = 0.35, 20  # Å; pairs that show equal jumps of the energy
MIN_CROSSING = 3  # pairs of similar frames across a gap that decide about it


def all_electron_energy(number: int) -> float:
    """Total energy of a neutral atom, eV (negative); above argon Schwinger's formula, good to 1 % without relativity.

    E = −0.768745 Z^(7/3) + Z²/2 − 0.269900 Z^(5/3) Hartree: Englert & Schwinger, Phys. Rev. A 1985, 32, 47.
    """
    if 1 <= number <= len(ATOM_ENERGIES):
        return -HARTREE * ATOM_ENERGIES[number - 1]
    z = float(number)
    return HARTREE * (-0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.2699 * z ** (5 / 3))


def check_energy_size(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Energies that equal all-electron energies in another unit, or lie below any energy in eV, or do so in part."""
    members = [i for i in found.having("energy") if any(z > 2 for z, _ in found.records[i].composition)]
    if not members:
        return []
    bottom = np.array([sum(c * all_electron_energy(z) for z, c in found.records[i].composition) for i in members])
    ratio = np.array([found.records[i].energy for i in members], dtype=float) / bottom
    light = all(z <= len(ATOM_ENERGIES) for i in members for z, _ in found.records[i].composition)
    tolerance = SIZE_TOLERANCE[light]
    total = np.abs(ratio - 1) < tolerance
    if total.mean() > 1 - MIN_SIDE:
        return []
    full = np.array([max(z for z, _ in found.records[i].composition) <= LAST_WITHOUT_CORE for i in members])
    if (total & full).mean() > MIN_SIDE and (full & (ratio < 0.9)).mean() > MIN_SIDE:
        fewer = full & total if total.mean() < 0.5 else full & ~total
        return [
            Finding(
                "fatal",
                TWO_KINDS,
                f"{int((total & full).sum())} of {int(full.sum())} frames hold all-electron total energies, the others "
                "do not: their zeros of energy differ.",
                "train on one kind only, or shift each to its own reference energies first",
                [members[k] for k in np.flatnonzero(fewer)],
            )
        ]
    return _check_unit(ratio, np.array([found.records[i].n_atoms for i in members]), tolerance)


def _check_unit(ratio: np.ndarray, n_atoms: np.ndarray, tolerance: float) -> list[Finding]:
    """Units in which the energies would be all-electron energies; `ratio` is to these, in eV."""
    middle = float(np.median(ratio))
    verdict = f"The energies are {middle:.4g} times the all-electron total energies in eV of the same atoms"
    causes = {f"in {unit}": ratio * ENERGY[unit] for unit in ("Ha", "Ry", "kcal/mol", "kJ/mol", "meV")}
    causes["per atom, not total"] = ratio * n_atoms
    fitting = [cause for cause, mended in causes.items() if (np.abs(mended - 1) < tolerance).mean() > 1 - MIN_SIDE]
    if fitting:
        mends = [
            f"--units energy={cause.split()[1]}" if cause.startswith("in ") else "multiply by the number of atoms"
            for cause in fitting
        ]
        text = f"{verdict}: they are {' or '.join(fitting)}."
        return [Finding("fatal", ENERGY_UNIT, text, " or ".join(mends))]
    if middle > 1 + tolerance:
        return [
            Finding(
                "fatal",
                "Energies cannot be eV",
                f"{verdict}, below any electronic energy.",
                "find the unit in the source of the data and read with --units energy=UNIT",
            )
        ]
    return []


def residual_energies(found: Survey, members: list[int]) -> tuple[np.ndarray, int, int]:
    """Energies per atom without the fitted references (n,), rank of the compositions, number of elements."""
    numbers = sorted({z for i in members for z, _ in found.records[i].composition})
    column = {z: k for k, z in enumerate(numbers)}
    fractions = np.zeros((len(members), len(numbers)))
    for row, i in enumerate(members):
        for z, count in found.records[i].composition:
            fractions[row, column[z]] = count / found.records[i].n_atoms
    energies = np.array([(found.records[i].energy or 0.0) / found.records[i].n_atoms for i in members])
    solution, _, rank, _ = np.linalg.lstsq(fractions, energies, rcond=1e-6)
    return energies - fractions @ solution, int(rank), len(numbers)


def check_references(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Elements without an isolated atom whose reference energies the compositions do not fix."""
    members = found.having("energy")
    bound = [i for i in members if not _is_atom(found, i)]
    if not bound:
        return []
    atoms = {found.records[i].composition[0][0] for i in members if _is_atom(found, i)}
    missing = sorted({z for i in bound for z, _ in found.records[i].composition} - atoms)
    if not missing:
        return []
    names = ", ".join(elements.symbol(z) for z in missing) if len(missing) < 10 else f"{len(missing)} elements"
    _, rank, count = residual_energies(found, bound)
    verdict = f"There is no isolated atom of {names}"
    if rank < count:
        verdict += f", and the compositions fix only {rank} of {count} reference energies"
    return [
        Finding(
            "note",
            "No reference energies",
            f"{verdict}; they will be fitted.",
            "add one frame with the single atom per element, in the same method, for physical dissociation energies",
        )
    ]


def _is_atom(found: Survey, index: int) -> bool:
    return found.records[index].n_atoms == 1 and np.isinf(found.records[index].nearest)


def check_energy_outliers(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Single frames whose energy per atom is far from all others after references."""
    members = [i for i in found.having("energy") if not _is_atom(found, i)]
    if len(members) < 10:
        return []
    residual, _, _ = residual_energies(found, members)
    residual = residual - np.median(residual)
    spread = 1.4826 * float(np.median(np.abs(residual)))
    strange = [i for i, r in zip(members, residual, strict=True) if abs(r) > max(OUTLIER * spread, OUTLIER_FLOOR)]
    if not strange or len(strange) > MIN_SIDE * len(members):
        return []
    worst = float(np.abs(residual).max())
    return [
        Finding(
            "warning",
            "Energy outliers",
            f"{len(strange)} frames lie up to {worst:.2f} eV/atom from the rest (robust spread {spread:.3f}).",
            "check that these calculations converged and used the same method; remove them if not",
            strange,
        )
    ]


@dataclass
class Clusters:
    """Frames of one stoichiometry on either side of a gap (eV/atom) in their energies."""

    low: list[int]
    high: list[int]
    gap: float


def energy_clusters(found: Survey) -> list[Clusters]:
    """Stoichiometries whose energies per atom lie on both sides of a gap that is wide against their spread."""
    groups: dict[tuple[tuple[int, float], ...], list[int]] = defaultdict(list)
    members = [i for i in found.having("energy") if not _is_atom(found, i)]
    for i in members:
        record = found.records[i]
        groups[tuple((z, round(c / record.n_atoms, 6)) for z, c in record.composition)].append(i)
    split = []
    for group in groups.values():
        energies = np.array([(found.records[i].energy or 0.0) / found.records[i].n_atoms for i in group])
        split += _split(group, energies, GAP_FLOOR)
    if not split and len(groups) > 1:
        residual, _, _ = residual_energies(found, members)
        split = _split(members, residual, GAP_SURE)
    return split


def offset_clusters(pairs: list[Pair]) -> list[Clusters]:
    """Clusters from energies that jump by the same amount between similar frames where their forces say nothing.

    Finds offsets that are smaller than the spread of the energies. The frames of a jump are told apart by walking
    along the pairs.
    """
    near = [p for p in pairs if p.displacement < JUMP_DISPLACEMENT]
    jumps = np.array([(p.difference - p.work) / p.n_atoms for p in near])
    if len(near) < JUMP_PAIRS:
        return []
    sizes = np.sort(np.abs(jumps))
    edge = int(np.ceil(0.1 * len(sizes)))
    cut = int(np.argmax(np.diff(sizes)[edge - 1 : len(sizes) - edge])) + edge
    gap = float(np.median(sizes[cut:]))
    if gap < GAP_FLOOR or sizes[cut - 1] > 0.3 * gap or sizes[cut] < 0.7 * gap or sizes[-edge] > 1.3 * gap:
        return []
    links: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for pair, jump in zip(near, jumps, strict=True):
        level = round(jump / gap)
        links[pair.first].append((pair.second, level))
        links[pair.second].append((pair.first, -level))
    low, high = [], []
    for levels in _levels(links):
        bottom = min(levels.values())
        if max(levels.values()) > bottom:
            low += [i for i, level in levels.items() if level == bottom]
            high += [i for i, level in levels.items() if level > bottom]
    return [Clusters(sorted(low), sorted(high), gap)]


def _levels(links: dict[int, list[tuple[int, int]]]) -> Iterator[dict[int, int]]:
    """Level of every frame of each connected part, relative to the frame where the walk began."""
    seen: set[int] = set()
    for start in links:
        if start in seen:
            continue
        levels, stack = {start: 0}, [start]
        while stack:
            here = stack.pop()
            for there, step in links[here]:
                if there not in levels:
                    levels[there] = levels[here] + step
                    stack.append(there)
        seen |= levels.keys()
        yield levels


def _split(members: list[int], energies: np.ndarray, floor: float) -> list[Clusters]:
    """The two sides of the widest gap, if it is wider than `floor` and than the spreads say."""
    edge = max(3, int(np.ceil(MIN_SIDE * len(members))))
    if len(members) < 2 * edge:
        return []
    order = np.argsort(energies)
    steps = np.diff(energies[order])[edge - 1 : len(members) - edge]
    cut = int(steps.argmax()) + edge
    low, high = energies[order[:cut]], energies[order[cut:]]
    if steps.max() <= max(floor, GAP * max(_spread(low), _spread(high))):
        return []
    sides = [[members[k] for k in part.tolist()] for part in (order[:cut], order[cut:])]
    return [Clusters(sides[0], sides[1], float(np.median(high) - np.median(low)))]


def _spread(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def check_mixed_codes(found: Survey, pairs: list[Pair], clusters: list[Clusters]) -> list[Finding]:
    """Energies in two clusters that geometry does not explain: two zeros of energy.

    A gap beyond GAP_SURE is enough; a smaller one must be confirmed by similar frames on both of its sides,
    whose energies differ by the gap and not by the work of their forces.
    """
    mixed, proofs = [], 0
    for one in clusters:
        side = dict.fromkeys(one.low, -1) | dict.fromkeys(one.high, 1)
        crossing = [
            (p.difference - p.work) / p.n_atoms * side[p.second]
            for p in pairs
            if p.first in side and p.second in side and side[p.first] != side[p.second]
        ]
        confirmed = len(crossing) >= MIN_CROSSING and float(np.median(crossing)) > 0.5 * one.gap
        if confirmed or (one.gap > GAP_SURE and len(crossing) < MIN_CROSSING):
            mixed.append(one)
            proofs += len(crossing)
    if not mixed:
        return []
    low, high = sum(len(one.low) for one in mixed), sum(len(one.high) for one in mixed)
    gap = max(one.gap for one in mixed)
    proof = f"; {proofs} pairs of similar frames across the gap show that geometry is not the cause"
    return [
        Finding(
            "fatal",
            TWO_KINDS,
            f"Energies fall into two clusters of {low} and {high} frames, {gap:.3f} eV/atom apart after references"
            f"{proof if proofs else ''}: two codes, methods or pseudopotentials are mixed.",
            "train on one kind only, or shift each to its own reference energies first",
            sorted(i for one in mixed for i in min(one.low, one.high, key=len)),
        )
    ]


def check_constant(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """The same energy for different geometries."""
    groups: dict[tuple[float | None, tuple], set[str]] = defaultdict(set)
    frames: dict[tuple[float | None, tuple], list[int]] = defaultdict(list)
    for i in found.having("energy"):
        record = found.records[i]
        if record.n_atoms > 1:
            groups[record.energy, record.composition].add(record.geometry)
            frames[record.energy, record.composition].append(i)
    constant = sorted(i for key, kinds in groups.items() if len(kinds) > 4 for i in frames[key])
    if len(constant) <= len(found.ok) / 20:
        return []
    return [
        Finding(
            "fatal",
            "Constant energies",
            f"{len(constant)} frames share their energy to the last digit with at least four other geometries.",
            "the energy was copied or rounded on export; export it again",
            constant,
        )
    ]
