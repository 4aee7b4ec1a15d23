"""How far generated geometries are from their nearest energy minimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets.errors import DataError
from ..datasets.structure import Structure
from .data import MoleculeOptions, prepared
from .extras import require
from .geometry import internal_coordinates, superposed_rmsd
from .workers import Failed, apart

KCAL_PER_EV = 23.060548  # kcal/mol
MMFF_STEPS = 1000
GFN2_STEPS, GFN2_FMAX = 500, 0.02  # eV/Å
TIMEOUT = 120.0  # s per molecule
CHANGES = {"drop": "kcal/mol", "rmsd": "Å", "bond": "Å", "angle": "degree", "dihedral": "degree"}


@dataclass(frozen=True)
class Relaxed:
    """A molecule at its energy minimum, all hydrogens present.

    structure: the end. drop: energy start − end, kcal/mol. rmsd: of heavy atoms after superposition, Å. bond (Å),
    angle, dihedral (degrees): mean absolute changes; NaN where the molecule has none. converged.
    """

    structure: Structure
    drop: float
    rmsd: float
    bond: float
    angle: float
    dihedral: float
    converged: bool


Minimum = tuple[np.ndarray, float, bool]
"""Positions ``(n, 3)`` Å, energy start − end in kcal/mol, converged."""

Relaxer = Callable[[Structure, np.ndarray], Minimum]
"""A molecule with all hydrogens, and the indices of atoms that do not move, to its minimum."""

NONE_HELD = np.zeros(0, dtype=np.int64)


def relaxed(structure: Structure, relaxer: Relaxer, *, implicit_hydrogens: bool) -> Relaxed:
    """Relax one valid molecule.

    Implicit hydrogens are added first, and relaxed with the other atoms held: the strain is that of what was generated.

    Raises:
        DataError: RDKit refuses the molecule, or the relaxer cannot treat it.
    """
    start = with_hydrogens(structure, implicit_hydrogens=implicit_hydrogens)
    if implicit_hydrogens:
        start.positions = np.asarray(relaxer(start, _heavy(start))[0], dtype=np.float64)
    return compared(start, relaxer(start, NONE_HELD), structure.info)


def relaxed_by_gfn2(
    structures: Sequence[Structure],
    *,
    implicit_hydrogens: bool,
    processes: int | None = None,
    timeout: float = TIMEOUT,
) -> list[Relaxed | DataError]:
    """As :func:`relaxed` by GFN2-xTB (package tblite) in gas phase, each molecule in a worker with a time limit.

    Raises:
        UserError: tblite is not installed.
    """
    require("GFN2-xTB")
    found: list[Relaxed | DataError | None] = [None] * len(structures)
    starts: dict[int, Structure] = {}
    for k, structure in enumerate(structures):
        try:
            starts[k] = with_hydrogens(structure, implicit_hydrogens=implicit_hydrogens)
        except DataError as error:
            found[k] = error
    items = [
        {
            "numbers": s.numbers.tolist(),
            "positions": s.positions.tolist(),
            "charge": s.charge or 0.0,
            "held_first": _heavy(s).tolist() if implicit_hydrogens else None,
        }
        for s in starts.values()
    ]
    answers = apart(f"{__package__}.strain:gfn2", items, processes=processes, timeout=timeout)
    for (k, start), answer in zip(starts.items(), answers, strict=True):
        if isinstance(answer, Failed):
            found[k] = DataError(f"GFN2-xTB: {answer.reason}")
        else:
            start.positions = np.array(answer["start"])
            minimum = np.array(answer["positions"]), answer["drop"], answer["converged"]
            found[k] = compared(start, minimum, structures[k].info)
    return [result for result in found if result is not None]


def with_hydrogens(structure: Structure, *, implicit_hydrogens: bool) -> Structure:
    """A valid molecule with all its hydrogens as atoms; those added here lie where MMFF94 wants them, if it can.

    Raises:
        DataError: RDKit refuses the molecule.
    """
    whole = prepared(structure, MoleculeOptions(hydrogens="add" if implicit_hydrogens else "keep"))
    if implicit_hydrogens:
        with suppress(DataError):
            whole.positions = mmff(whole, _heavy(whole))[0]
    return whole


def compared(start: Structure, minimum: Minimum, info: dict[str, Any]) -> Relaxed:
    """Start and minimum of a molecule side by side."""
    positions, drop, converged = minimum
    end = start.copy()
    end.positions = np.asarray(positions, dtype=np.float64)
    end.info = dict(info)
    heavy = start.numbers > 1
    heavy = heavy if heavy.any() else np.ones_like(heavy)
    before, after = internal_coordinates(start), internal_coordinates(end)
    changes = {
        name: float(np.abs(before[name][1] - after[name][1]).mean()) if len(before[name][1]) else np.nan
        for name in ("bond", "angle", "dihedral")
    }
    rmsd = superposed_rmsd(start.positions[heavy], end.positions[heavy])
    return Relaxed(end, drop, rmsd, **changes, converged=converged)


def mmff(structure: Structure, held: np.ndarray = NONE_HELD) -> Minimum:
    """A :data:`Relaxer` by MMFF94.

    Raises:
        DataError: MMFF94 has no parameters for the molecule, or its geometry is too far from any.
    """
    from rdkit import rdBase
    from rdkit.Chem import rdForceFieldHelpers

    mol = structure.to_rdkit()
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if properties is None:
        raise DataError(f"MMFF94 has no parameters: {structure.formula}")
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    for atom in held:
        field.AddFixedPoint(int(atom))
    before = field.CalcEnergy()
    try:
        with rdBase.BlockLogs():
            converged = field.Minimize(maxIts=MMFF_STEPS) == 0
    except RuntimeError:  # its line search is lost on absurd geometries
        raise DataError(f"MMFF94 finds no minimum: {structure.formula}") from None
    return np.array(mol.GetConformer().GetPositions()), before - field.CalcEnergy(), converged


def gfn2(
    numbers: Sequence[int],
    positions: Sequence[Sequence[float]],
    charge: float,
    held_first: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The minimum of one molecule by GFN2-xTB, in the lowest spin state; runs in a worker.

    held_first: relax with these atoms held before the start is taken.
    """
    from ase import Atoms
    from ase.constraints import FixAtoms
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    atoms = Atoms(numbers=numbers, positions=positions)
    odd = (sum(numbers) - round(charge)) % 2
    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, multiplicity=1 + odd, verbosity=0)
    if held_first is not None:
        atoms.set_constraint(FixAtoms(list(held_first)))
        BFGS(atoms, logfile=None).run(fmax=GFN2_FMAX, steps=GFN2_STEPS)
        atoms.set_constraint()
    start, before = atoms.positions.tolist(), atoms.get_potential_energy()
    converged = BFGS(atoms, logfile=None).run(fmax=GFN2_FMAX, steps=GFN2_STEPS)
    drop = KCAL_PER_EV * float(before - atoms.get_potential_energy())
    return {"start": start, "positions": atoms.positions.tolist(), "drop": drop, "converged": bool(converged)}


def _heavy(structure: Structure) -> np.ndarray:
    return np.flatnonzero(structure.numbers > 1)


def summary(results: Sequence[Relaxed], n_failed: int, method: str) -> dict[str, Any]:
    """Median and mean of energy drop, RMSD and the changes of bonds, angles and dihedrals; plain data."""
    report: dict[str, Any] = {"method": method, "n_relaxed": len(results), "n_failed": n_failed}
    if results:
        report["converged"] = float(np.mean([r.converged for r in results]))
    for name, unit in CHANGES.items():
        values = np.array([getattr(r, name) for r in results])
        values = values[~np.isnan(values)]
        if len(values):
            key = "energy_drop" if name == "drop" else name
            report[key] = {"median": float(np.median(values)), "mean": float(values.mean()), "unit": unit}
    return report
