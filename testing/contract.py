"""The contract that every energy model keeps, as tests to inherit.

A new architecture, ours or a third party's, supplies one method and inherits the rest:

    class TestMine(PotentialContract):
        def build(self, elements):
            return Mine(elements)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from ..datasets.errors import UserError
from ..datasets.graph import collate
from ..datasets.structure import Structure
from ..potentials.base import Potential, predict
from ..potentials.compiled import compile_gradient
from .derivatives import force_error, stress_error
from .symmetry import evaluate, graph, moved, symmetry_report


def perturb(model: Potential, *, seed: int = 0, size: float = 0.3) -> Potential:
    """Move all weights away from their initial values, in place: zeros and ones hide broken layouts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * max(spread, 0.1) * noise.to(parameter.dtype))
    return model


def molecule(seed: int = 0, n: int = 7) -> Structure:
    """A random cluster of H, C and O atoms no closer than 0.9 Å."""
    rng = np.random.default_rng(seed)
    points: list[np.ndarray] = []
    while len(points) < n:
        point = rng.uniform(-1.8, 1.8, size=3)
        if all(np.linalg.norm(point - other) > 0.9 for other in points):
            points.append(point)
    return Structure(rng.choice([1, 6, 8], size=n), np.array(points), np.zeros((3, 3)), np.zeros(3, bool))


def crystal(seed: int = 0) -> Structure:
    """A distorted triclinic cell, smaller than most cutoffs."""
    rng = np.random.default_rng(seed)
    cell = 3.6 * np.eye(3) + rng.uniform(-0.3, 0.3, size=(3, 3))
    fractional = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]) + rng.uniform(-0.03, 0.03, (4, 3))
    return Structure(np.array([6, 8, 8, 1]), fractional @ cell, cell, np.ones(3, bool))


class PotentialContract:
    """Tests of one architecture; every model is built in float64 with perturbed weights.

    Attributes:
        rotation_tolerance: relative error of energy and forces under rotation.
        mirror_safe: energies of mirror images must agree too.
        exact_isolated_atom: an atom without neighbours has exactly its reference energy and no force.
        twice_smooth: energy and forces of a pair fade out at the cutoff with continuous second derivative.
        compiles: the recorded gradient must equal the eager one, so that training may compile the architecture.
    """

    rotation_tolerance = 1e-10
    mirror_safe = True
    exact_isolated_atom = True
    twice_smooth = True
    compiles = False

    def build(self, elements: tuple[int, ...]) -> Potential:
        """A model for these elements, any dtype."""
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> Iterator[Potential]:
        """The model under test."""
        torch.manual_seed(0)
        yield perturb(self.build((1, 6, 8)).double().eval())

    @pytest.mark.parametrize("make", [molecule, crystal])
    def test_symmetries(self, model: Potential, make) -> None:  # type: ignore[no-untyped-def]
        report = symmetry_report(model, make())
        assert report.rotation < self.rotation_tolerance
        assert report.translation < 1e-10
        assert report.permutation < 1e-10
        assert report.batch < 1e-10
        if self.mirror_safe:
            assert report.reflection < self.rotation_tolerance

    def test_forces_are_the_gradient(self, model: Potential) -> None:
        for structure in (molecule(1), crystal(1)):
            scale = float(evaluate(model, structure).forces.abs().max())  # type: ignore[union-attr]
            assert force_error(model, structure) < 1e-7 * max(scale, 1.0)

    def test_stress_is_the_strain_derivative(self, model: Potential) -> None:
        structure = crystal(2)
        scale = float(evaluate(model, structure).stress.abs().max())  # type: ignore[union-attr]
        assert scale > 1e-6, "the test needs a stressed cell"
        assert stress_error(model, structure) < max(1e-7 * max(scale, 1.0), scale * self.rotation_tolerance)

    def test_sum_rules(self, model: Potential) -> None:
        for structure in (molecule(3), crystal(3)):
            found = evaluate(model, structure)
            assert float((found.energies.sum() - found.energy[0]).abs()) < 1e-10
            assert float(found.forces.sum(0).abs().max()) < 1e-10 * (1 + float(found.forces.abs().max()))  # type: ignore[union-attr]

    def test_extensive(self, model: Potential) -> None:
        unit = crystal(4)
        shifts = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)]) @ unit.cell
        positions = (shifts[:, None] + unit.positions).reshape(-1, 3)
        big = Structure(np.tile(unit.numbers, 8), positions, 2 * unit.cell, unit.pbc)
        one, eight = evaluate(model, unit), evaluate(model, big)
        assert float(eight.energy[0]) == pytest.approx(8 * float(one.energy[0]), rel=1e-10)
        assert torch.allclose(eight.stress, one.stress, atol=1e-10 * float(one.stress.abs().max()) + 1e-14)  # type: ignore[union-attr,arg-type]

    def test_far_molecules_do_not_see_each_other(self, model: Potential) -> None:
        a, b = molecule(5), molecule(6)
        far = moved(b, np.eye(3), np.array([100.0, 0, 0]))
        both = Structure(
            np.concatenate([a.numbers, far.numbers]),
            np.concatenate([a.positions, far.positions]),
            a.cell,
            a.pbc,
        )
        separate = float(evaluate(model, a).energy[0]) + float(evaluate(model, b).energy[0])
        assert float(evaluate(model, both).energy[0]) == pytest.approx(separate, rel=1e-10)

    def test_lattice_translations_and_wrapping_change_nothing(self, model: Potential) -> None:
        structure = crystal(7)
        rng = np.random.default_rng(7)
        unwrapped = structure.positions + rng.integers(-3, 4, size=(structure.n_atoms, 3)) @ structure.cell
        a, b = evaluate(model, structure), evaluate(model, replace(structure.copy(), positions=unwrapped))
        assert float(a.energy[0]) == pytest.approx(float(b.energy[0]), rel=1e-10)
        assert torch.allclose(a.forces, b.forces, atol=1e-9 * float(a.forces.abs().max()))  # type: ignore[union-attr,arg-type]

    def test_isolated_atom(self, model: Potential) -> None:
        for z in model.elements:
            atom = Structure(np.array([z]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
            found = evaluate(model, atom)
            assert torch.count_nonzero(found.forces) == 0  # type: ignore[arg-type]
            if self.exact_isolated_atom:
                assert float(found.energy[0]) == model.reference_energies[z]

    def test_smooth_at_the_cutoff(self, model: Potential) -> None:
        """Energy, force and curvature of a pair crossing the cutoff, at 1e-4 Å from it, are nearly those beyond it."""
        if not self.twice_smooth:
            pytest.skip("the architecture promises no second derivative at the cutoff")

        def pair(distance: float) -> float:
            positions = np.array([[0.0, 0, 0], [distance, 0, 0]])
            structure = Structure(np.array([6, 8]), positions, np.zeros((3, 3)), np.zeros(3, bool))
            return float(evaluate(model, structure).energy[0])

        h = 1e-3
        inside = [pair(model.cutoff - k * h) for k in range(3)]
        free = sum(model.reference_energies[z] for z in (6, 8))
        slope = (inside[0] - inside[1]) / h
        curvature = (inside[0] - 2 * inside[1] + inside[2]) / h**2
        assert inside[0] == pytest.approx(free, abs=1e-12)
        assert abs(slope) < 1e-5
        assert abs(curvature) < 2e-2

    def test_unknown_element_is_refused_by_name(self, model: Potential) -> None:
        gold = Structure(np.array([79]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
        with pytest.raises(UserError, match="does not know Au"):
            evaluate(model, gold)

    def test_stress_of_a_molecule_is_an_error_when_demanded_and_absent_otherwise(self, model: Potential) -> None:
        g = graph(model, molecule(8))
        assert predict(model, g).stress is None
        with pytest.raises(UserError, match="stress needs three"):
            predict(model, g, stress=True)

    def test_mixed_batch_has_stress_only_where_periodic(self, model: Potential) -> None:
        found = predict(model, collate([graph(model, molecule(9)), graph(model, crystal(9))]))
        assert found.stress_mask.tolist() == [False, True]  # type: ignore[union-attr]
        assert torch.isfinite(found.stress).all()  # type: ignore[arg-type]
        assert torch.allclose(found.stress[1], evaluate(model, crystal(9)).stress[0])  # type: ignore[index]

    def test_float32_is_close_to_float64(self, model: Potential) -> None:
        exact = evaluate(model, molecule(10))
        single = evaluate(model.float(), molecule(10))
        scale = float(exact.forces.abs().max())  # type: ignore[union-attr]
        assert float((single.forces.double() - exact.forces).abs().max()) < 1e-3 * scale  # type: ignore[union-attr,operator]
        assert single.energy.dtype == torch.float64

    def test_global_state_is_untouched(self, model: Potential) -> None:
        before = (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_rng_state(),
        )
        evaluate(model, molecule(11))
        after = (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_rng_state(),
        )
        assert before[:3] == after[:3]
        assert torch.equal(before[3], after[3])

    def test_checkpoint_round_trip(self, model: Potential, tmp_path) -> None:  # type: ignore[no-untyped-def]
        from ..potentials import load, save

        path = save(model, tmp_path / "model.safetensors")
        again = load(path)
        a, b = evaluate(model, molecule(12)), evaluate(again, molecule(12))
        assert torch.equal(a.energy, b.energy)
        assert torch.equal(a.forces, b.forces)  # type: ignore[arg-type]

    def test_compiled_equals_eager(self, model: Potential) -> None:
        """Energies, forces and the parameter gradients of a force loss, on two sizes with one compilation.

        Machine code is left out: it would take minutes, and the recorded graph and its derivatives are ours.
        """
        if not self.compiles:
            pytest.skip("the architecture does not claim to compile")
        compiled = compile_gradient("aot_eager")
        for structure in (molecule(13), crystal(13)):
            g = graph(model, structure)
            results = []
            for evaluator in ({}, {"energy_and_gradient": compiled}):
                model.zero_grad()
                found = predict(model, g, stress=False, create_graph=True, **evaluator)  # type: ignore[arg-type]
                (found.energy.sum() + found.forces.square().sum()).backward()  # type: ignore[union-attr,no-untyped-call]
                grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
                results.append([found.energy.detach(), found.forces.detach(), *grads])  # type: ignore[union-attr]
            for eager, other in zip(*results, strict=True):
                assert torch.allclose(eager, other, rtol=1e-8, atol=1e-9 * float(1 + eager.abs().max()))
