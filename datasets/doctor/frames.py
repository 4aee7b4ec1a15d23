"""Checks of single frames and of what is common to them: faults, distances, forces, duplicates, missing labels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .. import elements
from ..structure import Structure
from .findings import LENGTH_UNIT, STRESS_UNIT, Finding, Level
from .survey import Survey

OVERLAP = 0.5  # of the sum of covalent radii; H–H at 0.31 Å
TOO_LONG, TOO_SHORT = (
    1.5,
    0.7,
)  # typical nearest neighbours over the sum of radii; sound data lie at 0.9 to 1.25
FORCE_FLOOR, FORCE_RATIO = 20.0, 20.0  # eV/Å; an outlier exceeds both, the ratio to the median of the frames
THERMAL = 0.1  # eV/Å rms; thermal forces in Hartree/Å stay below
FORCE_UNITS = 15.0  # eV/Å rms of the typical frame that no thermal ensemble reaches
NET_FORCE = 0.15  # of rms · sqrt(3 n): random errors of a plane-wave code stay far below
NET_FLOOR = 0.02  # eV/Å per frame; below, it is rounding
STRESS_UNITS = 1.0  # eV/Å³ = 160 GPa
VOLUME_RATIO = 20.0
NEAR_COMPARISONS = 5000
NOBLE = {2, 10, 18, 36, 54, 86}


def check_faults(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Frames that `Structure.validate` refuses, one finding per kind."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(found.records):
        if record.fault is not None:
            kinds[re.sub(r"-?\d+(\.\d+)?", "#", record.fault)].append(i)
    findings = []
    for frames in kinds.values():
        fault = found.records[frames[0]].fault or ""
        what, _, mend = fault.partition(": ")
        findings.append(
            Finding("fatal", "Unusable frames", f"{len(frames)} frames, the first: {fault}.", mend or what, frames)
        )
    return findings


def check_labels(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Labels that all, or some, frames lack; charge and spin that only some state."""
    findings, ok = [], found.ok
    for label in ("energy", "forces", "stress"):
        without = [i for i in ok if label not in found.records[i].labels]
        if label == "stress":
            without = [i for i in without if found.records[i].volume_per_atom is not None]
        if ok and len(without) == len(ok) and label == "energy":
            keys = ", ".join(sorted(found.other_keys)) or "none"
            findings.append(
                Finding(
                    "fatal",
                    "No energies",
                    f"No frame has the label 'energy'; other keys present: {keys}.",
                    "name the key that holds it: --keys energy=KEY",
                )
            )
        elif without and found.having(label):
            lonely = all(found.records[i].n_atoms == 1 for i in without)
            if not (label == "forces" and lonely):
                findings.append(
                    Finding(
                        "warning" if label == "energy" else "note",
                        f"Missing {label}",
                        f"{len(without)} of {len(ok)} frames have no {label}; they are masked in training.",
                        "nothing, if it is meant so",
                        without,
                    )
                )
    if ok and not found.having("forces"):
        findings.append(
            Finding(
                "note",
                "No forces",
                "No frame has forces; a potential learns far less from energies alone.",
                "name the key that holds them, if there is one: --keys forces=KEY",
            )
        )
    for name in ("charge", "spin"):
        without = [i for i in ok if name not in found.records[i].states]
        if without and len(without) < len(ok):
            findings.append(
                Finding(
                    "warning",
                    f"Mixed {name}",
                    f"{len(without)} of {len(ok)} frames state no {name}, the others do.",
                    f"state the {name} of every frame; there is no default",
                    without,
                )
            )
    return findings


def check_distances(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Overlapping atoms, and lengths that cannot be Å."""
    findings = []
    bonded = [
        i
        for i in found.ok
        if found.records[i].n_atoms > 1 and any(z not in NOBLE for z, _ in found.records[i].composition)
    ]
    typical = float(np.median([found.records[i].bonded for i in bonded])) if bonded else 1.0
    if typical > TOO_LONG or typical < TOO_SHORT:
        text = "more than 1.5 times" if np.isinf(typical) else f"{typical:.2f} times"
        guess = "bohr read as Å" if typical > TOO_LONG else "nm, fractional or scaled coordinates read as Å"
        findings.append(
            Finding(
                "fatal",
                LENGTH_UNIT,
                f"The nearest neighbours of a typical atom are {text} the sum of covalent radii (sound data: 0.9 to "
                f"1.25): {guess}?",
                "read with the right unit of length: --units length=bohr (or nm)",
            )
        )
        return findings
    overlapping = sorted(
        (i for i in found.ok if found.records[i].nearest < OVERLAP), key=lambda i: found.records[i].nearest
    )
    if overlapping:
        worst = found.records[overlapping[0]]
        numbers = source[overlapping[0]].numbers
        a, b = worst.nearest_pair
        names = f"{elements.symbol(int(numbers[a]))}{a} and {elements.symbol(int(numbers[b]))}{b}"
        findings.append(
            Finding(
                "warning",
                "Overlapping atoms",
                f"{len(overlapping)} frames have atoms closer than half a bond; the worst, {names} of frame "
                f"{overlapping[0]}, stand at {worst.nearest:.2f} of the sum of their radii.",
                "remove these frames, unless they are compressed on purpose",
                sorted(overlapping),
            )
        )
    return findings


def check_volumes(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Periodic cells of the same elements whose volume per atom differs wildly."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in found.ok:
        if found.records[i].volume_per_atom is not None and found.records[i].n_atoms > 1:
            groups[tuple(z for z, _ in found.records[i].composition)].append(i)
    wild = []
    for members in groups.values():
        volumes = np.array([found.records[i].volume_per_atom for i in members], dtype=float)
        ratio = volumes / np.median(volumes)
        wild += [i for i, r in zip(members, ratio, strict=True) if r > VOLUME_RATIO or r < 1 / VOLUME_RATIO]
    if not wild:
        return []
    return [
        Finding(
            "note",
            "Very different cells",
            f"{len(wild)} frames have a volume per atom more than {VOLUME_RATIO:.0f} times off the median of their "
            "elements: vacuum around a cluster, or a wrong cell.",
            "look at these frames; set pbc to False where the box is only a formality",
            sorted(wild),
        )
    ]


def check_forces(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Outliers, all-zero forces, net forces and force units that the size gives away."""
    having = [i for i in found.having("forces") if found.records[i].n_atoms > 1]
    if not having:
        return []
    findings = []
    rms = np.array([found.records[i].force_rms for i in having], dtype=float)
    top = np.array([found.records[i].force_max for i in having], dtype=float)
    if not top.any():
        return [
            Finding(
                "fatal",
                "All forces are zero",
                f"All forces of {len(having)} frames are zero.",
                "the file holds no real forces: leave them out (--keys forces=) or export them again",
            )
        ]
    if np.median(rms) > FORCE_UNITS:
        findings.append(
            Finding(
                "fatal",
                "Forces are not in eV/Å",
                f"The typical frame has a force rms of {np.median(rms):.0f} eV/Å (sound data: 0.05 to 5): perhaps "
                "kcal/mol/Å or kJ/mol/Å.",
                "read with the right units: --units energy=kcal/mol",
            )
        )
    limit = max(FORCE_FLOOR, FORCE_RATIO * float(np.median(top)))
    outliers = [i for i, value in zip(having, top, strict=True) if value > limit]
    if outliers:
        worst = max(outliers, key=lambda i: found.records[i].force_max or 0.0)
        record = found.records[worst]
        findings.append(
            Finding(
                "warning",
                "Force outliers",
                f"{len(outliers)} frames have forces above {limit:.0f} eV/Å (typical largest force: "
                f"{np.median(top):.2f}); the worst is {record.force_max:.1f} eV/Å on atom {record.force_max_atom} of "
                f"frame {worst}.",
                "check that these calculations converged; remove the frames or train with the Huber loss",
                outliers,
            )
        )
    return findings + _check_net_force(found, having)


def plausible_forces(found: Survey) -> bool:
    """Whether the typical force has the size of thermal forces in eV/Å."""
    sizes = [found.records[i].force_rms or 0.0 for i in found.having("forces")]
    return bool(sizes) and THERMAL < float(np.median(sizes)) < FORCE_UNITS


def _check_net_force(found: Survey, having: list[int]) -> list[Finding]:
    drifting = []
    for i in having:
        record = found.records[i]
        scale = (record.force_rms or 0.0) * np.sqrt(3 * record.n_atoms)
        if (record.net_force or 0.0) > max(NET_FLOOR, NET_FORCE * scale):
            drifting.append(i)
    if len(drifting) <= max(1, len(having) // 100):
        return []
    worst = max(drifting, key=lambda i: found.records[i].net_force or 0.0)
    return [
        Finding(
            "warning",
            "Net force",
            f"The forces of {len(drifting)} of {len(having)} frames do not add up to zero (worst: "
            f"{found.records[worst].net_force:.3f} eV/Å in frame {worst}); no conservative potential can fit that.",
            "use converged grids and cutoffs, or check for fixed or missing atoms and external fields",
            drifting,
        )
    ]


def check_stress_size(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """A stress whose size gives its unit away, or a stress without a cell."""
    sizes = [found.records[i].stress_rms or 0.0 for i in found.having("stress")]
    if sizes and np.median(sizes) > STRESS_UNITS:
        return [
            Finding(
                "fatal",
                STRESS_UNIT,
                f"The typical stress is {np.median(sizes):.1f} eV/Å³ = {160.2 * np.median(sizes):.0f} GPa.",
                "read with the right unit: --units stress=GPa (or kbar)",
            )
        ]
    return []


def check_duplicates(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Frames with exactly the same geometry, with the same or with different energies."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in found.ok:
        groups[found.records[i].geometry].append(i)
    repeated = [members for members in groups.values() if len(members) > 1]
    same: list[int] = []
    different: list[int] = []
    spread = 0.0
    for members in repeated:
        energies = [e for i in members if (e := found.records[i].energy) is not None]
        gap = (max(energies) - min(energies)) / found.records[members[0]].n_atoms if energies else 0.0
        (different if gap > 1e-4 else same).extend(members)
        spread = max(spread, gap)
    findings = []
    if different:
        findings.append(
            Finding(
                "fatal" if len(different) > len(found.ok) / 100 else "warning",
                "Contradicting duplicates",
                f"{len(different)} frames repeat a geometry with another energy (up to {1000 * spread:.1f} meV/atom "
                "apart): states, methods or convergence are mixed.",
                "keep one frame of each, and state charge and spin where they differ",
                sorted(different),
            )
        )
    if same:
        copies = len(same) - len({found.records[i].geometry for i in same})
        level: Level = "warning" if copies > len(found.ok) / 20 else "note"
        findings.append(
            Finding(
                level,
                "Duplicates",
                f"{copies} frames repeat the geometry and energy of another frame.",
                "remove the copies, and above all split before copying: copies in the test set flatter",
                sorted(same),
            )
        )
    return findings


def check_near_duplicates(found: Survey, source: Sequence[Structure]) -> list[Finding]:
    """Different frames so alike that they would flatter a random split (0.01 Å, found among neighbours in energy)."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in found.having("energy"):
        if found.records[i].n_atoms > 1:
            groups[found.records[i].atoms, found.records[i].cell].append(i)
    close: set[int] = set()
    compared = 0
    for members in groups.values():
        members.sort(key=lambda i: found.records[i].energy or 0.0)
        for a, b in pairwise(members):
            alike = (
                found.records[a].geometry != found.records[b].geometry
                and abs((found.records[a].energy or 0.0) - (found.records[b].energy or 0.0))
                < 1e-4 * found.records[a].n_atoms
            )
            compared += alike
            if (
                alike
                and compared <= NEAR_COMPARISONS
                and np.abs(source[a].positions - source[b].positions).max() < 0.01
            ):
                close |= {a, b}
    if len(close) <= max(2, len(found.ok) // 50):
        return []
    return [
        Finding(
            "note",
            "Near duplicates",
            f"{len(close)} frames differ from another by less than 0.01 Å in every coordinate.",
            "split by trajectory or group (`tesseral data split --by group`), not at random",
            sorted(close),
        )
    ]
