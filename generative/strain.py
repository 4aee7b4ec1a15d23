"""How far generated geometries are from their nearest energy minimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets.errors import DataError
from ..datasets.structure import Structure
from .data import MoleculeOptions, prepared

KCAL_PER_EV = 23.060548  # kcal/mol
MMFF_STEPS = 1000


@dataclass(frozen=True)
class Relaxed:
    """A molecule at its energy minimum, all hydrogens present.

    structure: the end. drop: energy start − end, kcal/mol. rmsd: of heavy atoms after superposition, Å. converged.
    """

    structure: Structure
    drop: float
    rmsd: float
    converged: bool


Relaxer = Callable[[Structure], tuple[np.ndarray, float, bool]]
"""A molecule with all hydrogens to (positions ``(n, 3)`` Å, energy start − end in kcal/mol, converged)."""


def relaxed(structure: Structure, relaxer: Relaxer, *, implicit_hydrogens: bool) -> Relaxed:
    """Relax one valid molecule; implicit hydrogens are added first.

    Raises:
        DataError: RDKit refuses the molecule, or the relaxer cannot treat it.
    """
    options = MoleculeOptions(hydrogens="add" if implicit_hydrogens else "keep")
    start = prepared(structure, options)
    positions, drop, converged = relaxer(start)
    end = start.copy()
    end.positions = np.asarray(positions, dtype=np.float64)
    end.info = dict(structure.info)
    heavy = start.numbers > 1
    heavy = heavy if heavy.any() else np.ones_like(heavy)
    return Relaxed(end, drop, superposed_rmsd(start.positions[heavy], end.positions[heavy]), converged)


def mmff(structure: Structure) -> tuple[np.ndarray, float, bool]:
    """A :data:`Relaxer` by MMFF94.

    Raises:
        DataError: MMFF94 has no parameters for the molecule.
    """
    from rdkit.Chem import rdForceFieldHelpers

    mol = structure.to_rdkit()
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if properties is None:
        raise DataError(f"MMFF94 has no parameters: {structure.formula}")
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    before = field.CalcEnergy()
    converged = field.Minimize(maxIts=MMFF_STEPS) == 0
    return np.array(mol.GetConformer().GetPositions()), before - field.CalcEnergy(), converged


def superposed_rmsd(a: np.ndarray, b: np.ndarray) -> float:
    """RMSD (Å) of two sets of positions ``(n, 3)`` after the best translation and rotation (Kabsch)."""
    a, b = a - a.mean(0), b - b.mean(0)
    singular = np.linalg.svd(a.T @ b, compute_uv=False)
    if np.linalg.det(a.T @ b) < 0:
        singular[-1] *= -1
    square = (a**2).sum() + (b**2).sum() - 2 * singular.sum()
    return float(np.sqrt(max(square, 0.0) / len(a)))


def summary(results: Sequence[Relaxed], n_failed: int, method: str) -> dict[str, Any]:
    """Median and mean of energy drop and RMSD, plain data for a report."""
    report: dict[str, Any] = {"method": method, "n_relaxed": len(results), "n_failed": n_failed}
    if results:
        drops, rmsds = (np.array([getattr(r, name) for r in results]) for name in ("drop", "rmsd"))
        report["converged"] = float(np.mean([r.converged for r in results]))
        report["energy_drop"] = {
            "median": float(np.median(drops)),
            "mean": float(drops.mean()),
            "unit": "kcal/mol",
        }
        report["rmsd"] = {"median": float(np.median(rmsds)), "mean": float(rmsds.mean()), "unit": "Å"}
    return report
