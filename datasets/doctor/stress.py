"""Sign, unit and order of the stress from finite strain: ΔE = Σ V σ·ε between frames that are strained copies.

Frames with the same fractional coordinates and different cells (elastic sets, volume scans) are pulled into
pairs; the work of the stress along the logarithmic strain (trapezoid) must be the energy difference, up to a
pressure that an unconverged basis adds (Pulay stress), which is fitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations

import numpy as np

from ..structure import Structure
from ..units import BOHR, ENERGY, GIGAPASCAL, HARTREE, VOIGT, voigt_permutation
from .findings import STRESS_UNIT, Finding
from .survey import Survey

MAX_GROUP = 40  # frames of one elastic set
MAX_STRAIN = 0.25
MIN_PAIRS = 5
EXPLAINED = 0.8  # of the variance of energies, from which a verdict is given
BETTER = 0.5  # of the unexplained variance that another order must leave at most
CLOSE = 1.6
OURS = " ".join(VOIGT)
ORDERS = [OURS] + [
    order
    for order in [" ".join(("xx", "yy", "zz", *shear)) for shear in permutations(("yz", "xz", "xy"))]
    + ["xx xy xz yy yz zz"]
    if order != OURS
]
KCAL, KJOULE = ENERGY["kcal/mol"], ENERGY["kJ/mol"]
CAUSES = [
    (GIGAPASCAL, "it is in GPa", "--units stress=GPa"),
    (0.1 * GIGAPASCAL, "it is in kbar", "--units stress=kbar"),
    (1e-4 * GIGAPASCAL, "it is in bar", "--units stress=bar"),
    (HARTREE / BOHR**3, "it is in Hartree/bohr³", "--units stress=Ha/bohr^3"),
    (1 / KCAL, "energies are in kcal/mol", "--units energy=kcal/mol,stress=eV/Å^3"),
    (1 / KJOULE, "energies are in kJ/mol", "--units energy=kJ/mol,stress=eV/Å^3"),
    (1 / HARTREE, "energies are in Hartree", "--units energy=Ha,stress=eV/Å^3"),
]


def check_strain(found: Survey, source: Sequence[Structure], energy_scale: float = 1.0) -> list[Finding]:
    """Compare stress and energy along strains; silent where no elastic sets are found or they decide nothing.

    `energy_scale` is the scale of the energies against forces: a stress that is off by the same is not to
    blame.
    """
    differences, volumes, works = _strained_pairs(found, source)
    if len(differences) < MIN_PAIRS or not differences.any():
        return []
    fits = {order: _fit(differences, volumes, works[:, k]) for k, order in enumerate(ORDERS)}
    left, slope = fits[OURS]
    best = min(fits, key=lambda order: fits[order][0])
    if fits[best][0] > 1 - EXPLAINED:
        return []
    findings = []
    along = f"Along {len(differences)} strained pairs"
    if best != OURS and fits[best][0] < BETTER * left:
        findings.append(
            Finding(
                "fatal",
                "Stress components are in another order",
                f"{along} the stress explains {100 * (1 - fits[best][0]):.1f} % of the energy differences when its "
                f"components are read as {best}, {100 * (1 - left):.1f} % as {OURS}.",
                f"read with the right order: --units 'stress_order={best}'",
            )
        )
        slope = fits[best][1]
    if slope < 0:
        findings.append(
            Finding(
                "fatal",
                "Stress has the wrong sign",
                f"{along} the energy falls where the stress says that it rises (ΔE = {slope:.3g} × work): positive "
                "means compression in this file.",
                "turn the sign: --units stress_sign=-1",
            )
        )
    if not 1 / CLOSE < abs(slope) < CLOSE and not 1 / CLOSE < abs(slope) / energy_scale < CLOSE:
        distance, cause, mend = min((abs(np.log(abs(slope) / value)), cause, mend) for value, cause, mend in CAUSES)
        if distance > np.log(CLOSE):
            cause, mend = "no known unit explains this factor", "find the unit of the stress"
        text = f"{along} the energy changes {abs(slope):.3g} times as the stress says: {cause}."
        findings.append(Finding("fatal", STRESS_UNIT, text, mend))
    return findings


def _strained_pairs(found: Survey, source: Sequence[Structure]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per atom: energy differences (p,), volume differences (p,), work for every order (p, n_orders)."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in found.having("energy", "stress"):
        crystal = found.records[i].crystal
        if crystal is not None:
            groups[crystal].append(i)
    differences, volumes, works = [], [], []
    columns = [voigt_permutation(order) for order in ORDERS]
    for members in groups.values():
        if len(members) < 2:
            continue
        step = max(1, len(members) // MAX_GROUP)
        frames = [source[i] for i in members[::step][:MAX_GROUP]]
        for a, first in enumerate(frames):
            for second in frames[a + 1 :]:
                strain = log_strain(first.cell, second.cell)
                if not 1e-5 < np.abs(strain).max() < MAX_STRAIN:
                    continue
                differences.append(float(second.labels["energy"] - first.labels["energy"]) / first.n_atoms)
                volumes.append((second.volume - first.volume) / first.n_atoms)
                tension = (first.volume * first.labels["stress"] + second.volume * second.labels["stress"]) / 2
                works.append([float(tension[order] @ strain) / first.n_atoms for order in columns])
    return np.array(differences), np.array(volumes), np.array(works).reshape(-1, len(ORDERS))


def log_strain(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Strain (6,) from one cell (3, 3) to another, Voigt order, shears doubled; NaN-free series of the logarithm.

    It is the symmetric part of log F with second = first · F, good to 1e-3 relative up to MAX_STRAIN.
    """
    step = np.linalg.solve(first, second) - np.eye(3)
    logarithm, power = np.zeros((3, 3)), np.eye(3)
    for order in range(1, 7):
        power = power @ step
        logarithm += power * (-1) ** (order + 1) / order
    e = (logarithm + logarithm.T) / 2
    return np.array([e[0, 0], e[1, 1], e[2, 2], 2 * e[1, 2], 2 * e[0, 2], 2 * e[0, 1]])


def _fit(differences: np.ndarray, volumes: np.ndarray, work: np.ndarray) -> tuple[float, float]:
    """Unexplained part of the variance and slope a of ΔE = a · work + p ΔV."""
    basis = np.column_stack([work, volumes])
    solution = np.linalg.lstsq(basis, differences, rcond=1e-10)[0]
    left = float(np.square(differences - basis @ solution).sum() / np.square(differences).sum())
    return left, float(solution[0])
