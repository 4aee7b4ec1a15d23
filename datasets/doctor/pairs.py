"""Do forces and energies belong together? ΔE = −½ (F_i + F_j)·Δr between similar frames tells sign, unit and offsets.

The trapezoid is exact for a harmonic surface; only the closest pairs are used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..structure import Structure
from ..units import BOHR, ENERGY, HARTREE
from .findings import Finding
from .survey import Survey

MAX_FRAMES = 2000  # read again for this test
MAX_GROUP = 200  # of one composition and cell
BLOCK = 10  # consecutive frames are taken together: trajectories keep their close pairs
PARTNERS = 4
MAX_DISPLACEMENT = 0.6  # Å rms per atom
MIN_WORK = 1e-3  # eV
MIN_PAIRS = 8
SIGN = 0.6  # agreement of signs, weighted by work, from which a verdict is given
SURE_SIGN = 0.95
CLOSE, CLOSE_NOISY = 1.4, 1.7  # factors within which scales are equal, for sure signs and for others
CHANCE, SURE_PAIRS, SURE_DISPLACEMENT = (
    0.3,
    20,
    0.35,
)  # sign, pairs, Å: forces that know nothing of energies


@dataclass
class Pair:
    """Two similar frames: energy difference and work of the mean force (eV), displacement (Å rms), atoms."""

    first: int
    second: int
    difference: float
    work: float
    displacement: float
    n_atoms: int


def similar_pairs(found: Survey, source: Sequence[Structure]) -> list[Pair]:
    """Close pairs of frames with the same atoms and cell that have energies and forces."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in found.having("energy", "forces"):
        record = found.records[i]
        if record.n_atoms > 1:
            groups[record.atoms, record.cell].append(i)
    pairs: list[Pair] = []
    budget = MAX_FRAMES
    for members in sorted(groups.values(), key=len, reverse=True):
        if len(members) < 2 or budget <= 0:
            break
        chosen = _blocks(members)
        budget -= len(chosen)
        pairs += _pairs_of_group([source[i] for i in chosen], chosen)
    return pairs


def _blocks(members: list[int]) -> list[int]:
    """At most MAX_GROUP members, in blocks of consecutive ones spread over the whole."""
    if len(members) <= MAX_GROUP:
        return members
    starts = np.linspace(0, len(members) - BLOCK, MAX_GROUP // BLOCK).astype(int)
    return [members[k] for k in sorted({int(s) + b for s in starts for b in range(BLOCK)})]


def _pairs_of_group(frames: list[Structure], indices: list[int]) -> list[Pair]:
    positions, forces = _aligned(frames)
    energies = np.array([float(s.labels["energy"]) for s in frames])
    n_atoms, pairs = frames[0].n_atoms, {}
    for a in range(len(frames)):
        step = _shortest(positions - positions[a], frames[0])
        distance = np.sqrt(np.square(step).sum(axis=(1, 2)) / n_atoms)
        distance[distance < 1e-6] = np.inf
        for b in np.argsort(distance)[:PARTNERS].tolist():
            work = -0.5 * float(((forces[a] + forces[b]) * step[b]).sum())
            if distance[b] > MAX_DISPLACEMENT or abs(work) < MIN_WORK:
                continue
            sign = 1 if a < b else -1
            pairs[min(a, b), max(a, b)] = Pair(
                indices[min(a, b)],
                indices[max(a, b)],
                sign * float(energies[b] - energies[a]),
                sign * work,
                float(distance[b]),
                n_atoms,
            )
    return list(pairs.values())


def _aligned(frames: list[Structure]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and forces (n_frames, n_atoms, 3); molecules are turned onto the first frame (Kabsch)."""
    positions = np.stack([s.positions for s in frames])
    forces = np.stack([s.labels["forces"] for s in frames])
    if frames[0].pbc.any():
        return positions, forces
    positions = positions - positions.mean(axis=1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("fai,aj->fij", positions, positions[0]))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return positions @ (u @ vt), forces @ (u @ vt)


def _shortest(step: np.ndarray, frame: Structure) -> np.ndarray:
    """Displacements modulo the periodic cell vectors (minimum image for small ones)."""
    if not frame.pbc.any():
        return step
    lattice = frame.cell[frame.pbc]
    images = np.round(step @ np.linalg.pinv(lattice))
    return step - images @ lattice


class Match(NamedTuple):
    """Findings on forces against energies; scale ΔE / work (1 where undecided or right); sure: signs all agree."""

    findings: list[Finding]
    scale: float = 1.0
    sure: bool = False

    @property
    def confirms_units(self) -> bool:
        """Energies and forces surely belong together, in one unit."""
        return self.sure and not self.findings


def check_pairs(pairs: list[Pair], raised: set[int]) -> Match:
    """Sign and unit of forces against energies.

    Pairs of a frame in `raised` (the upper energy clusters) with one outside are left out.
    """
    pairs = sorted((p for p in pairs if (p.first in raised) == (p.second in raised)), key=lambda p: p.displacement)
    pairs = pairs[: max(len(pairs) // 4, MIN_PAIRS)]
    if len(pairs) < MIN_PAIRS:
        return Match([])
    difference = np.array([p.difference for p in pairs])
    work = np.array([p.work for p in pairs])
    sign = float((np.abs(work) * np.sign(difference * work)).sum() / np.abs(work).sum())
    scale = float(np.median(np.abs(difference)) / np.median(np.abs(work)))
    if abs(sign) < SIGN:
        return Match(_check_belonging(pairs, sign))
    measured = (
        f"Between {len(pairs)} pairs of similar frames the energy changes {np.sign(sign) * scale:.3g} times as "
        f"the forces say (signs agree to {50 * (1 + sign):.0f} %)"
    )
    findings, sure = [], abs(sign) > SURE_SIGN
    if sign < 0:
        findings.append(
            Finding(
                "fatal",
                "Forces have the wrong sign",
                f"{measured}: they are gradients dE/dx, or the energies are negated.",
                "turn the sign: --keys forces=-KEY with KEY the name in the file",
            )
        )
    close = CLOSE if sure else CLOSE_NOISY
    if 1 / close < scale < close:
        return Match(findings, 1.0, sure)
    cause, mend = _explain_scale(scale, float(np.median([p.n_atoms for p in pairs])), close)
    findings.append(Finding("fatal", "Forces and energies do not match", f"{measured}: {cause}.", mend))
    return Match(findings, scale, sure)


def _check_belonging(pairs: list[Pair], sign: float) -> list[Finding]:
    """Pairs so close that any forces of theirs should know the sign of the energy change, and do not."""
    near = float(np.median([p.displacement for p in pairs]))
    if len(pairs) < SURE_PAIRS or near > SURE_DISPLACEMENT or abs(sign) > CHANCE:
        return []
    return [
        Finding(
            "fatal",
            "Forces do not belong to the energies",
            f"Between {len(pairs)} pairs of similar frames ({near:.2f} Å apart) the forces predict the sign of the "
            f"energy change no better than chance (right in {50 * (1 + sign):.0f} %).",
            "look for shuffled frames or atoms, or labels of two methods in one file",
        )
    ]


def _explain_scale(scale: float, n_atoms: float, close: float) -> tuple[str, str]:
    """Cause and mend of ΔE / work = scale when the numbers are taken as eV and eV/Å."""
    kcal, kjoule = ENERGY["kcal/mol"], ENERGY["kJ/mol"]
    causes = [
        (1 / HARTREE, "energies are in Hartree", "energy=Ha,forces=eV/Å"),
        (HARTREE, "forces are in Hartree/Å", "energy=eV,forces=Ha/Å"),
        (HARTREE / BOHR, "forces are in Hartree/bohr", "energy=eV,forces=Ha/bohr"),
        (1 / BOHR, "forces are per bohr", "forces=eV/bohr"),
        (BOHR, "forces were converted from bohr twice", "forces=eV/Å, if the file has them so"),
        (1 / kcal, "energies are in kcal/mol", "energy=kcal/mol,forces=eV/Å"),
        (kcal, "forces are in kcal/mol/Å", "energy=eV,forces=kcal/mol/Å"),
        (1 / kjoule, "energies are in kJ/mol", "energy=kJ/mol,forces=eV/Å"),
        (kjoule, "forces are in kJ/mol/Å", "energy=eV,forces=kJ/mol/Å"),
        (1e3, "energies are in meV", "energy=meV,forces=eV/Å"),
        (1e-3, "forces are in meV/Å", "energy=eV,forces=meV/Å"),
        (HARTREE / 2, "forces are in Rydberg/Å", "energy=eV,forces=Ry/Å"),
        (HARTREE / 2 / BOHR, "forces are in Rydberg/bohr", "energy=eV,forces=Ry/bohr"),
        (2 / HARTREE, "energies are in Rydberg", "energy=Ry,forces=eV/Å"),
        (1 / n_atoms, "energies are per atom, not total", ""),
    ]
    ranked = sorted((abs(np.log(scale / value)), cause, units) for value, cause, units in causes)
    near = [(cause, units) for distance, cause, units in ranked if distance < np.log(close)][:2]
    if not near:
        return (
            "no known pair of units explains this factor",
            "check what the file holds as energy and as forces",
        )
    mends = [f"--units {units}" if units else "multiply the energies by the number of atoms" for _, units in near]
    return "perhaps " + " or ".join(cause for cause, _ in near), " or ".join(mends)
