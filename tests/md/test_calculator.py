"""The ASE calculator: sums, gradients, caching, failures, dtypes, boundaries."""

import gc

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

from tesseral.datasets.errors import UserError
from tesseral.md.calculator import Calculator, as_calculator


def test_sum_rules(structure, morse):
    structure.calc = Calculator(morse)
    energies = structure.get_potential_energies()
    assert energies.shape == (len(structure),)
    assert abs(energies.sum() - structure.get_potential_energy()) < 1e-10
    assert structure.get_potential_energy(force_consistent=True) == structure.get_potential_energy()
    assert np.abs(structure.get_forces().sum(axis=0)).max() < 1e-12
    assert np.abs(np.cross(structure.positions, structure.get_forces()).sum(axis=0)).max() < 1e-9 or structure.pbc.any()


def test_forces_are_finite_differences(structure, morse):
    structure.calc = Calculator(morse)
    numeric = calculate_numerical_forces(structure, eps=1e-4, iatoms=[0, 5], icarts=[0, 1, 2])
    assert np.abs(numeric - structure.get_forces()[[0, 5]]).max() < 1e-7


def test_stress_is_finite_difference_in_ase_sign_and_order(crystal, morse):
    crystal.calc = Calculator(morse)
    numeric = calculate_numerical_stress(crystal, eps=1e-5)
    assert np.abs(numeric - crystal.get_stress()).max() < 1e-8
    squeezed = bulk("Cu", cubic=True, a=2.6)
    squeezed.calc = Calculator(morse)
    assert (squeezed.get_stress()[:3] < 0).all()  # compressed: negative in ASE's sign


def test_isolated_atom_has_its_reference_energy_and_no_force(morse):
    atom = Atoms("O", positions=[[7.0, 8.0, 9.0]], calculator=Calculator(morse))
    assert atom.get_potential_energy() == morse.reference_energies[8]
    assert (atom.get_forces() == 0).all()


def test_no_atoms(morse):
    nothing = Atoms(calculator=Calculator(morse))
    assert nothing.get_potential_energy() == 0
    assert nothing.get_forces().shape == (0, 3)


@pytest.mark.parametrize("name", ["molecule", "slab"])
def test_stress_needs_three_periodic_axes(name, morse, request):
    atoms = request.getfixturevalue(name)
    atoms.calc = Calculator(morse)
    atoms.get_forces()
    assert "stress" not in atoms.calc.results
    assert atoms.calc.get_property("stress", atoms, allow_calculation=False) is None
    with pytest.raises(PropertyNotImplementedError, match="three periodic axes") as caught:
        atoms.get_stress()
    assert isinstance(caught.value, UserError)


def test_in_plane_virial_of_slab_and_crystal(slab, crystal, molecule, morse):
    calculator = Calculator(morse)
    virial = calculator.in_plane_virial(slab)
    strained = [slab.copy(), slab.copy()]
    for atoms, sign in zip(strained, (1, -1), strict=True):
        stretch = np.diag([1 + sign * 1e-5, 1, 1])
        atoms.set_cell(atoms.cell.array @ stretch)
        atoms.positions = atoms.positions @ stretch
        atoms.calc = Calculator(morse)
    slope = (strained[0].get_potential_energy() - strained[1].get_potential_energy()) / 2e-5
    assert abs(virial[0, 0] + slope) < 1e-5
    assert np.abs(virial[2]).max() < 1e-12
    crystal.calc = Calculator(morse)
    expected = -crystal.get_volume() * crystal.get_stress(voigt=False)
    assert np.abs(crystal.calc.in_plane_virial(crystal) - expected).max() < 1e-10
    with pytest.raises(PropertyNotImplementedError, match="without periodic axes"):
        calculator.in_plane_virial(molecule)


def test_results_do_not_depend_on_the_skin(structure, morse):
    rng = np.random.default_rng(3)
    calculators = [Calculator(morse, skin=skin) for skin in (0.0, 0.5, 2.0)]
    for _ in range(8):
        structure.positions += rng.normal(0, 0.08, structure.positions.shape)
        forces = [c.get_property("forces", structure) for c in calculators]
        assert np.array_equal(forces[0], forces[1])
        assert np.array_equal(forces[0], forces[2])
    assert calculators[2].neighbors.n_builds < calculators[0].neighbors.n_builds


def test_results_do_not_depend_on_wrapping(crystal, morse):
    moved = crystal.copy()
    moved.positions += np.random.default_rng(1).integers(-3, 4, (len(moved), 3)) @ moved.cell.array
    crystal.calc, moved.calc = Calculator(morse), Calculator(morse)
    assert abs(crystal.get_potential_energy() - moved.get_potential_energy()) < 1e-9
    assert np.abs(crystal.get_forces() - moved.get_forces()).max() < 1e-11
    assert np.abs(crystal.get_stress() - moved.get_stress()).max() < 1e-12


def test_geometry_is_kept_in_float64_for_float32_models(molecule, morse_class):
    """Edge vectors are formed before the cast: far from the origin nothing is lost."""
    calculator = Calculator(morse_class(dtype=torch.float32))
    near = calculator.get_property("forces", molecule)
    molecule.positions += 65536.0  # a power of two, so that float64 itself loses little
    far = calculator.get_property("forces", molecule)
    assert np.abs(near - far).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype(crystal, morse, dtype):
    reference = Calculator(morse).get_property("forces", crystal)
    calculator = Calculator(morse, dtype=dtype)
    assert calculator.todict()["dtype"] == dtype
    error = np.abs(calculator.get_property("forces", crystal) - reference).max()
    assert error < (1e-5 if dtype == "float32" else 1e-12)
    for name in ("energies", "forces", "stress"):
        value = calculator.get_property(name, crystal)
        assert (
            type(value) is np.ndarray and value.dtype == np.float64 and value.flags.c_contiguous and value.flags.owndata
        )
    assert type(calculator.get_property("energy", crystal)) is float
    with pytest.raises(UserError, match="float32, float64"):
        Calculator(morse, dtype="float16")


def test_unknown_element_is_named(morse):
    atoms = Atoms("CUO", positions=np.eye(3) * 2, calculator=Calculator(morse))
    with pytest.raises(UserError, match=r"does not know U; it knows H C O Cu"):
        atoms.get_forces()


def test_failed_step_leaves_no_results(molecule, morse):
    calculator = molecule.calc = Calculator(morse)
    good = molecule.get_forces()
    molecule.positions[3, 1] = np.nan
    for _ in range(2):  # the second request must not find the old results either
        with pytest.raises(UserError, match="position of atom 3 is not finite"):
            molecule.get_forces()
        assert calculator.results == {} and calculator.atoms is None
    molecule.positions[3, 1] = 0.0
    assert not np.array_equal(molecule.get_forces(), good)


def test_results_that_are_not_finite_are_refused(molecule, morse):
    calculator = molecule.calc = Calculator(morse)
    molecule.get_forces()
    with torch.no_grad():
        calculator.model.depth.fill_(float("inf"))
    molecule.positions += 0.01 * np.arange(12)[:, None]
    for _ in range(2):
        with pytest.raises(CalculationFailed, match="not finite"):
            molecule.get_forces()
        assert calculator.results == {}


def test_every_change_of_the_structure_is_seen(crystal, morse):
    crystal.calc = Calculator(morse)
    seen = {crystal.get_potential_energy()}
    crystal.positions[0, 0] += 1e-6
    seen.add(crystal.get_potential_energy())
    crystal.numbers[0] = 6
    seen.add(crystal.get_potential_energy())
    crystal.pbc = (True, True, False)
    seen.add(crystal.get_potential_energy())
    crystal.set_cell(crystal.cell * 1.01)
    seen.add(crystal.get_potential_energy())
    assert len(seen) == 5


def test_energy_alone_then_forces(molecule, morse):
    molecule.calc = Calculator(morse)
    energy = molecule.get_potential_energy()
    assert "forces" not in molecule.calc.results
    molecule.get_forces()
    assert molecule.get_potential_energy() == energy


def test_forces_and_stress_come_from_one_evaluation(crystal, morse):
    crystal.calc = Calculator(morse)
    crystal.get_forces()
    assert {"energy", "free_energy", "energies", "forces", "stress"} <= set(crystal.calc.results)


def test_returned_arrays_are_copies(molecule, morse):
    molecule.calc = Calculator(morse)
    forces = molecule.get_forces()
    forces[:] = 7
    assert not (molecule.get_forces() == 7).any()


def test_the_model_is_copied(molecule, morse):
    molecule.calc = Calculator(morse)
    before = molecule.get_potential_energy()
    with torch.no_grad():
        morse.depth.mul_(2)
    molecule.positions[0] += 0.0
    molecule.calc.reset()
    assert molecule.get_potential_energy() == before
    assert morse.depth.requires_grad


def test_torch_global_state_is_untouched(crystal, morse):
    before = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.random.get_rng_state(),
    )
    Calculator(morse, dtype="float32").get_property("stress", crystal)
    after = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.random.get_rng_state(),
    )
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])


def test_gradients_are_found_also_under_no_grad(molecule, morse):
    expected = Calculator(morse).get_property("forces", molecule)
    with torch.no_grad():
        assert np.array_equal(Calculator(morse).get_property("forces", molecule), expected)


class TestChargeAndSpin:
    """Inputs that a model reads have no silent default and are part of the cache."""

    @pytest.fixture
    def charged(self, morse_class):
        return type("Charged", (morse_class,), {"inputs": ("charge", "spin")})()

    def test_missing(self, molecule, charged):
        molecule.calc = Calculator(charged)
        with pytest.raises(UserError, match=r"takes the charge .* set atoms.info\['charge'\]"):
            molecule.get_forces()
        molecule.info["charge"] = 0
        with pytest.raises(UserError, match="takes the spin"):
            molecule.get_forces()

    def test_given_and_changed(self, molecule, charged):
        molecule.calc = Calculator(charged)
        molecule.info.update(charge=-1, spin=2)
        graph = molecule.calc.graph(molecule)
        assert graph.charge.tolist() == [-1.0] and graph.spin.tolist() == [2]
        molecule.get_forces()
        assert not molecule.calc.calculation_required(molecule, ["forces"])
        molecule.info["charge"] = 1
        assert molecule.calc.calculation_required(molecule, ["forces"])

    def test_ignored_by_other_models(self, molecule, morse):
        molecule.calc = Calculator(morse)
        molecule.get_forces()
        molecule.info["charge"] = 3
        molecule.set_initial_magnetic_moments(np.ones(len(molecule)))
        assert not molecule.calc.calculation_required(molecule, ["forces"])


def test_nonconservative_models_are_flagged(morse_class):
    assert Calculator(morse_class()).conservative
    assert not Calculator(type("Direct", (morse_class,), {"conservative": False})()).conservative


def test_as_calculator_passes_others_through(morse):
    calculator = Calculator(morse)
    assert as_calculator(calculator) is calculator
    with pytest.raises(UserError, match="handed in"):
        as_calculator(calculator, dtype="float64")


def test_memory_is_flat(crystal, morse):
    """Nothing of a step is kept: the number of live tensors does not grow."""
    crystal.calc = Calculator(morse)
    counts = []
    for step in range(12):
        crystal.positions[0, 0] += 1e-3
        crystal.get_forces()
        if step in (3, 11):
            gc.collect()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    assert counts[0] == counts[1]


def test_fingerprint_follows_the_weights(morse_class):
    same = {Calculator(morse_class()).fingerprint() for _ in range(2)}
    assert len(same) == 1
    assert Calculator(morse_class(depth=0.5)).fingerprint() not in same
