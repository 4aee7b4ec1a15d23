"""Relaxation of atoms, and of the cell if asked, to the nearest energy minimum, by ASE's optimisers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator

from ..datasets.errors import UserError
from .calculator import StressUndefinedError, as_calculator
from .trajectory import Trajectory, check_format, open_trajectory

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator
    from ase.optimize.optimize import Optimizer

    from ..potentials.base import Potential

OPTIMIZERS = ("bfgs", "lbfgs", "fire")
CELL_MODES = ("volume", "shape")


@dataclass
class RelaxResult:
    """What a relaxation gave.

    atoms: the end, with energy, forces (and stress) attached; converged; steps; energy and energy_start (eV);
    fmax: largest force on an atom (eV/Å); max_stress_GPa: largest component of the stress (less the pressure
    asked for) that was relaxed, None for a fixed cell; seconds.
    """

    atoms: Atoms
    converged: bool
    steps: int
    energy: float
    energy_start: float
    fmax: float
    max_stress_GPa: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain nested keys with their units, for JSON."""
        return {
            "formula": str(self.atoms.symbols),
            "n_atoms": len(self.atoms),
            "converged": self.converged,
            "steps": self.steps,
            "energy": {"value": self.energy, "start": self.energy_start, "unit": "eV"},
            "fmax": {"value": self.fmax, "unit": "eV/Å"},
            "max_stress": {"value": self.max_stress_GPa, "unit": "GPa"},
            "volume": {
                "value": float(self.atoms.get_volume()) if self.atoms.pbc.all() else None,
                "unit": "Å³",
            },
            "seconds": self.seconds,
        }


def relax(
    atoms: Atoms,
    model: Potential | BaseCalculator | str | PathLike[str],
    *,
    cell: bool | str | Sequence[bool] = False,
    fmax: float = 0.01,
    smax_GPa: float = 0.1,
    steps: int = 500,
    optimizer: str = "bfgs",
    symmetry: bool = False,
    pressure_GPa: float = 0.0,
    trajectory: str | PathLike[str] | None = None,
    log: str | PathLike[str] | None = None,
    force: bool = False,
    progress: bool = False,
    device: str | None = None,
    dtype: str | None = None,
) -> RelaxResult:
    """Relax a structure.

    Arguments:
        atoms: the start (unchanged); its constraints hold.
        model: name, path, `Potential`, or any ASE calculator.
        cell: False: fixed; True: all six strains; "volume": isotropic; "shape": at constant volume; six
            booleans: the strains xx yy zz yz xz xy to relax.
        fmax: eV/Å, largest force on an atom at convergence. smax_GPa: likewise the stress on a cell that
            relaxes.
        steps: at most so many. optimizer: "bfgs", "lbfgs" or "fire".
        symmetry: keep the space group of the start (three periodic axes; needs spglib).
        pressure_GPa: outer pressure on a cell that relaxes.
        trajectory: file for all steps (.extxyz, .traj, .h5). log: text file with a line for each step.
        force: replace these files. progress: show a bar.

    Returns a `RelaxResult`; not reaching the tolerances is no error, see `converged`.
    Raises UserError for options or structures that cannot be relaxed.
    """
    from tqdm import tqdm

    if optimizer not in OPTIMIZERS:
        raise UserError(f"optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
    if not fmax > 0 or not smax_GPa > 0 or steps < 0:
        raise UserError(f"{fmax=}, {smax_GPa=} must be positive and {steps=} not negative")
    frames = _open(trajectory, log, force)
    begin = time.perf_counter()
    work = atoms.copy()
    work.calc = as_calculator(model, device=device, dtype=dtype)
    constraints = list(work.constraints)
    if symmetry:
        _keep_symmetry(work)
    target = work if cell is False else _cell_filter(work, cell, pressure_GPa)
    driver = _optimizer(optimizer)(target, logfile=None if log is None else str(log))
    bar = tqdm(total=steps, unit=" steps", disable=None if progress else True, leave=False)
    try:
        start = float(work.get_potential_energy())
        converged = _iterate(driver, target, _Goal(fmax, smax_GPa), frames, bar)
        residual = None if target is work else _residual_stress(target)
        largest = _largest_force(work)
        work.set_constraint(constraints)
        result = _frozen(work)
    except CalculationFailed as error:
        raise UserError(f"the relaxation failed at step {driver.nsteps}: {error}; check the start") from error
    finally:
        bar.close()
        if frames is not None:
            frames.close()
    return RelaxResult(
        atoms=result,
        converged=converged,
        steps=driver.nsteps,
        energy=float(result.get_potential_energy()),
        energy_start=start,
        fmax=largest,
        max_stress_GPa=residual,
        seconds=time.perf_counter() - begin,
    )


@dataclass(frozen=True)
class _Goal:
    """When a relaxation is done: forces on atoms, and the stress on a cell that relaxes, each in its unit.

    ASE's criterion mixes both into one vector, the stress scaled by the number of atoms.
    """

    fmax: float
    smax_GPa: float

    def reached(self, atoms: Atoms, target: Any) -> bool:
        """`target` is the filter of the cell, or `atoms` themselves."""
        if _largest_force(atoms) > self.fmax:
            return False
        return target is atoms or _residual_stress(target) <= self.smax_GPa


def _iterate(driver: Optimizer, target: Any, goal: _Goal, frames: Trajectory | None, bar: Any) -> bool:
    """Step until the goal is reached (True) or the steps of the bar are used up."""
    atoms = getattr(target, "atoms", target)
    for _ in driver.irun(fmax=0.0, steps=bar.total):
        if frames is not None:
            frames.write(_frozen(atoms))
        bar.set_postfix_str(f"fmax {_largest_force(atoms):.4f} eV/Å", refresh=False)
        bar.update(driver.nsteps - bar.n)
        if goal.reached(atoms, target):
            return True
    return False


def _optimizer(name: str) -> Any:
    from ase.optimize import BFGS, FIRE, LBFGS

    return {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}[name]


def _cell_filter(atoms: Atoms, cell: bool | str | Sequence[bool], pressure_GPa: float) -> Any:
    """The filter that adds the free strains to the positions. Raises UserError where none can relax."""
    from ase.filters import FrechetCellFilter

    class CellFilter(FrechetCellFilter):
        """ASE's filter, its forces kept: optimisers ask four times a step, and the matrix functions cost."""

        _asked: tuple[bytes, bytes] | None = None

        def get_forces(self, **options: Any) -> np.ndarray:
            now = (self.atoms.positions.tobytes(), self.atoms.cell.array.tobytes())
            if now != self._asked:
                self._kept = super().get_forces(**options)
                self._asked = now
            return self._kept.copy()

    if not atoms.pbc.all():
        raise StressUndefinedError(
            f"the cell of a structure with pbc {atoms.pbc.tolist()} cannot be relaxed: stress needs three "
            "periodic axes; leave out --cell"
        )
    mask = None
    if isinstance(cell, str):
        if cell not in CELL_MODES:
            raise UserError(f"cell {cell!r}: expected True, False, {', '.join(CELL_MODES)} or six booleans")
    elif cell is not True:
        mask = [bool(component) for component in cell]  # type: ignore[union-attr]
        if len(mask) != 6 or not any(mask):
            raise UserError(f"cell {mask}: expected six booleans (xx yy zz yz xz xy), at least one of them True")
    return CellFilter(
        atoms,
        mask=mask,
        hydrostatic_strain=cell == "volume",
        constant_volume=cell == "shape",
        scalar_pressure=pressure_GPa * units.GPa,
    )


def _residual_stress(target: Any) -> float:
    """Largest stress component in GPa that the filter still drives (masked and less the pressure)."""
    target.get_forces()
    return float(np.abs(target.stress).max() / units.GPa)


def _largest_force(atoms: Atoms) -> float:
    forces = atoms.get_forces()
    return float(np.linalg.norm(forces, axis=1).max()) if len(forces) else 0.0


def _keep_symmetry(atoms: Atoms) -> None:
    """Add the constraint that keeps the space group."""
    if not atoms.pbc.all():
        raise UserError(f"symmetry needs three periodic axes, the structure has pbc {atoms.pbc.tolist()}: leave it out")
    try:
        from ase.constraints import FixSymmetry

        atoms.set_constraint([*atoms.constraints, FixSymmetry(atoms)])
    except ImportError as error:
        raise UserError(f"symmetry needs spglib ({error}): pip install spglib, or leave it out") from error


def _frozen(atoms: Atoms) -> Atoms:
    """A copy that carries energy, forces and (three periodic axes) stress as numbers."""
    results: dict[str, Any] = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(apply_constraint=False),
    }
    if "stress" in atoms.calc.results:
        results["stress"] = atoms.calc.results["stress"].copy()
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def _open(trajectory: str | PathLike[str] | None, log: str | PathLike[str] | None, force: bool) -> Trajectory | None:
    """Make room for both files and open the trajectory. Raises UserError where one must not be replaced."""
    if trajectory is not None:
        check_format(Path(trajectory))
    for path in (Path(name) for name in (trajectory, log) if name is not None):
        if path.exists():
            if not force:
                raise UserError(f"{path} exists already: choose another name, or replace it with force=True (--force)")
            path.unlink()
    return None if trajectory is None else open_trajectory(Path(trajectory))
