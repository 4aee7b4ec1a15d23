"""The weights that come with the package: cards, sum rules, derivatives, energy conservation on real structures."""

import numpy as np
import pytest

from tesseral.datasets.structure import Structure
from tesseral.potentials import load, shipped
from tesseral.testing.derivatives import force_error, stress_error
from tesseral.testing.symmetry import evaluate, symmetry_report
from tesseral.training.shipped import weights

WEIGHTS = weights("potentials")

CARD = ("summary", "periodic", "description", "data", "level_of_theory", "licence", "not_for")


def structure_for(name: str) -> Structure:
    """A real structure within the model's domain, slightly off its minimum."""
    from ase.build import bulk, molecule

    atoms = bulk("Si", cubic=True) * (2, 1, 1) if "solids" in name else molecule("C2H6CHOH")
    atoms.rattle(0.04, seed=1)
    return Structure.from_ase(atoms)


def test_both_models_are_here_and_small():
    assert set(shipped()) == {"tesseral-organic", "tesseral-solids"}
    assert all(path.stat().st_size < 3e6 for path in WEIGHTS.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["tesseral-organic", "tesseral-solids"])
class TestShipped:
    def test_card_says_what_a_user_must_know(self, name):
        header = shipped()[name]
        assert all(header["card"][key] not in (None, "", []) for key in CARD)
        tests = header["metrics"]["test"]
        assert all(0 < errors["forces"]["rmse"] < 1000 for errors in tests.values())
        assert (WEIGHTS / f"{name}.md").read_text(encoding="utf-8").startswith(f"# {name}")

    def test_symmetries_to_rounding(self, name):
        report = symmetry_report(load(name, dtype="float64"), structure_for(name))
        assert max(report.rotation, report.reflection, report.translation, report.permutation, report.batch) < 1e-9

    def test_sum_rules_and_derivatives(self, name):
        model, structure = load(name, dtype="float64"), structure_for(name)
        found = evaluate(model, structure)
        assert float((found.energies.sum() - found.energy[0]).abs()) < 1e-9
        assert float(found.forces.sum(0).abs().max()) < 1e-9
        assert force_error(model, structure) < 1e-7
        if structure.pbc.all():
            assert stress_error(model, structure) < 1e-7

    def test_isolated_atoms_have_their_reference_energy(self, name):
        model = load(name)
        for z in model.elements:
            atom = Structure(np.array([z]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
            found = evaluate(model, atom)
            assert float(found.energy[0]) == model.reference_energies[z]
            assert float(found.forces.abs().max()) == 0

    def test_atoms_pushed_together_repel(self, name):
        """Short range is unknown to the data; the built-in repulsion must hold there."""
        model = load(name, dtype="float64")
        z = model.elements[-1]

        def pair(distance: float) -> float:
            positions = np.array([[0.0, 0, 0], [distance, 0, 0]])
            return float(
                evaluate(model, Structure(np.array([z, z]), positions, np.zeros((3, 3)), np.zeros(3, bool))).energy[0]
            )

        assert pair(0.2) > pair(0.3) > pair(0.4)

    def test_energy_is_conserved(self, name):
        """200 steps of 0.5 fs at 300 K: fluctuations of the total energy stay below 1 meV per atom."""
        from ase import units
        from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
        from ase.md.verlet import VelocityVerlet

        from tesseral.md.calculator import Calculator

        atoms = structure_for(name).to_ase()
        atoms.calc = Calculator(name, dtype="float64")
        MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
        dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
        energies = [atoms.get_total_energy()]
        for _ in range(10):
            dynamics.run(20)
            energies.append(atoms.get_total_energy())
        assert np.ptp(energies) / len(atoms) < 1e-3
