"""Relaxation: minima, cells, symmetry, constraints, options."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read

from tesseral.datasets.errors import UserError
from tesseral.md.calculator import Calculator
from tesseral.md.relax import relax


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
def test_dimer_reaches_the_minimum(morse_class, optimizer):
    """The minimum along the bond, found by a scan of the energy, is where the optimiser ends."""
    model = morse_class()
    start = Atoms("O2", positions=[[0, 0, 0], [0, 0, 2.3]])
    result = relax(start, model, optimizer=optimizer, fmax=1e-4)
    calculator = Calculator(model)
    lengths = np.linspace(2.08, 2.12, 401)
    scan = [calculator.get_property("energy", Atoms("O2", positions=[[0, 0, 0], [0, 0, r]])) for r in lengths]
    assert result.converged and result.fmax <= 1e-4
    assert abs(result.atoms.get_distance(0, 1) - lengths[int(np.argmin(scan))]) < 2e-4
    assert result.energy < result.energy_start
    assert start.get_distance(0, 1) == 2.3 and start.calc is None


def test_result_carries_its_numbers(structure, morse):
    result = relax(structure, morse, fmax=0.02)
    assert result.converged
    assert result.atoms.get_potential_energy() == result.energy
    largest = np.linalg.norm(result.atoms.get_forces(), axis=1).max()
    assert largest == pytest.approx(result.fmax) and largest <= 0.02
    record = result.to_dict()
    assert record["energy"] == {"value": result.energy, "start": result.energy_start, "unit": "eV"}
    assert record["max_stress"]["value"] is None


def test_constrained_atoms_stay(molecule, morse):
    molecule.set_constraint(FixAtoms([0, 1]))
    result = relax(molecule, morse)
    assert np.array_equal(result.atoms.positions[:2], molecule.positions[:2])
    assert len(result.atoms.constraints) == 1


@pytest.fixture
def small_crystal(morse):
    """Four atoms near the minimum, so that cells relax in few steps."""
    atoms = bulk("Cu", cubic=True, a=2.9)
    atoms.positions += np.random.default_rng(0).normal(0, 0.02, (4, 3))
    return atoms


def test_cell_relaxes_to_the_pressure(small_crystal, morse):
    result = relax(small_crystal, morse, cell=True, pressure_GPa=5, smax_GPa=0.01)
    assert result.converged
    stress = result.atoms.get_stress() / units.GPa
    assert np.abs(stress - [-5, -5, -5, 0, 0, 0]).max() <= 0.0100001
    assert result.max_stress_GPa <= 0.01


def test_cell_modes_move_what_they_say(small_crystal, morse):
    start = small_crystal.cell.array
    volume = relax(small_crystal, morse, cell="volume").atoms.cell.array @ np.linalg.inv(start)
    assert np.abs(volume - np.eye(3) * volume[0, 0]).max() < 1e-9 and abs(volume[0, 0] - 1) > 1e-3
    small_crystal.set_cell(small_crystal.cell.array * [1.05, 1, 1], scale_atoms=True)
    shape = relax(small_crystal, morse, cell="shape").atoms
    assert shape.get_volume() == pytest.approx(small_crystal.get_volume(), rel=1e-6)
    assert abs(shape.cell[0, 0] - small_crystal.cell[0, 0]) > 1e-3
    one = relax(small_crystal, morse, cell=[False, False, True, False, False, False]).atoms.cell.array
    moved = np.abs(one - small_crystal.cell.array)
    assert moved[2, 2] > 1e-3 and moved[:2].max() < 1e-9


def test_symmetry_is_kept(morse):
    pytest.importorskip("spglib")
    import spglib

    start = bulk("Cu", cubic=True, a=2.9)
    start.set_cell(start.cell.array * [1, 1, 1.08], scale_atoms=True)
    result = relax(start, morse, cell="volume", symmetry=True).atoms

    def group(atoms):
        return spglib.get_spacegroup((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers))

    assert group(result) == group(start)
    assert not result.constraints


def test_steps_run_out(molecule, morse):
    result = relax(molecule, morse, steps=2, fmax=1e-6)
    assert not result.converged and result.steps == 2


def test_converged_start_takes_no_step(morse):
    result = relax(Atoms("O", positions=[[0, 0, 0]]), morse)
    assert result.converged and result.steps == 0


def test_any_ase_calculator():
    result = relax(bulk("Cu", cubic=True, a=3.7), EMT(), cell=True)
    assert result.converged and abs(result.atoms.cell[0, 0] - 3.59) < 0.02


@pytest.mark.parametrize("ending", ["extxyz", "traj", "h5"])
def test_trajectory_and_log(molecule, morse, tmp_path, ending):
    path, log = tmp_path / f"relax.{ending}", tmp_path / "relax.log"
    result = relax(molecule, morse, trajectory=path, log=log)
    if ending == "h5":
        from tesseral.datasets.store import Store

        energies = [float(frame.labels["energy"]) for frame in Store(path)]
    else:
        energies = [frame.get_potential_energy() for frame in read(path, ":")]
    assert len(energies) == result.steps + 1
    assert energies[0] == pytest.approx(result.energy_start) and energies[-1] == pytest.approx(result.energy)
    assert len(log.read_text().splitlines()) >= result.steps
    with pytest.raises(UserError, match="exists already"):
        relax(molecule, morse, trajectory=path)
    relax(molecule, morse, trajectory=path, log=log, force=True, steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "newton"}, "expected one of bfgs, lbfgs, fire"),
        ({"fmax": 0}, "must be positive"),
        ({"cell": True}, "three periodic axes"),
        ({"symmetry": True}, "three periodic axes"),
        ({"trajectory": "run.dat"}, r"must end in one of \.extxyz"),
    ],
)
def test_errors_say_what_to_do(molecule, morse, options, message):
    with pytest.raises(UserError, match=message):
        relax(molecule, morse, **options)


@pytest.mark.parametrize("cell", ["all", [True, False], [False] * 6])
def test_bad_cell_option(crystal, morse, cell):
    with pytest.raises(UserError, match="six booleans"):
        relax(crystal, morse, cell=cell)
