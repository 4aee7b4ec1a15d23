"""Gates of paths and of pairs: numbers, phases, gradients, and what they leave out."""

import pytest
import torch

from tesseral.kernels.conventions import coupling_paths
from tesseral.potentials.hamiltonian import pair as pair_layers
from tesseral.potentials.hamiltonian.gates import (
    ADAPTIVE,
    FIXED,
    RANDOM,
    DensePaths,
    PairGate,
    SparsePaths,
    start_step,
)

DEGREES = tuple(range(5))
PATHS = coupling_paths(DEGREES, 4, DEGREES, "so3")
T = 10


def gate(sparsity=0.7):
    return SparsePaths(PATHS, sparsity).double()


def test_phases_and_numbers_of_paths():
    paths = gate()
    seen = []
    for step in range(2 * T):
        start_step(paths, step, T)
        assert paths.phase == RANDOM and len(paths().indices) == 19
        seen.append(paths().indices)
    assert len(set(seen)) == 2 * T
    with torch.no_grad():
        paths.scores.copy_(torch.linspace(0.5, 1.5, 65).flip(0))
    start_step(paths, 2 * T, T)
    assert paths.phase == ADAPTIVE and paths().indices == tuple(range(19))
    with torch.no_grad():
        paths.scores.copy_(torch.linspace(0.5, 1.5, 65))
    start_step(paths, 3 * T - 1, T)
    assert paths.phase == ADAPTIVE and paths().indices == tuple(range(46, 65))
    start_step(paths, 3 * T, T)
    fixed = paths().indices
    assert paths.phase == FIXED and fixed == tuple(range(46, 65))
    with torch.no_grad():
        paths.scores.copy_(torch.linspace(0.5, 1.5, 65).flip(0))
    start_step(paths, 3 * T + 1, T)
    assert paths().indices == fixed


def test_random_choices_depend_on_the_step_alone():
    first, second = gate(), gate()
    start_step(first, 3, T)
    for step in range(4):
        start_step(second, step, T)
    assert first.chosen == second.chosen


@pytest.mark.parametrize(("sparsity", "kept"), [(0.7, 19), (0.5, 32), (0.9, 6), (0.99, 1)])
def test_number_of_paths_is_exact_with_ties(sparsity, kept):
    paths = gate(sparsity)
    start_step(paths, 2 * T, T)
    assert len(paths().indices) == kept


def test_last_phase_has_the_numbers_of_the_one_before():
    paths = gate()
    with torch.no_grad():
        paths.scores.add_(torch.rand(65, generator=torch.Generator().manual_seed(0)))
    start_step(paths, 3 * T - 1, T)
    before = paths()
    start_step(paths, 3 * T, T)
    after = paths()
    assert after.indices == before.indices and torch.equal(after.coefficients, before.coefficients)
    assert before.coefficients.requires_grad and not after.coefficients.requires_grad


def test_coefficients():
    """a p / sum over the chosen of a p, in units where all paths with p = 1 have the dense ones."""
    paths, dense = gate(), DensePaths(PATHS)()
    paths.eval()
    assert torch.allclose(paths().coefficients, dense.coefficients, rtol=1e-14) and paths().indices is None
    paths.train()
    start_step(paths, 2 * T, T)
    chosen = paths()
    a = dense.coefficients[list(chosen.indices)]
    assert torch.allclose(chosen.coefficients, a / a.sum() * dense.coefficients.sum(), rtol=1e-13)
    expected = torch.tensor([((2 * p.l3 + 1) / 65) ** 0.5 for p in PATHS], dtype=torch.float64)
    into = torch.tensor([sum(q.l3 == p.l3 for q in PATHS) for p in PATHS])
    assert torch.allclose(dense.coefficients, (expected / into).sqrt(), rtol=1e-14)


def test_scores_learn_in_the_second_phase(nets):
    model = nets.network("sphnet", step=25).train()
    blocks = model(nets.several())
    (blocks.diagonal.square().sum() + blocks.lower.square().sum()).backward()
    for layer in (*model.selfs, *model.pairs):
        choice = layer.product.choice
        chosen = torch.zeros(65, dtype=torch.bool)
        chosen[list(choice.chosen)] = True
        gradient = choice.scores.grad
        assert bool((gradient[chosen] != 0).all()) and not bool(gradient[~chosen].any())
    for gates in (model.second.pair_gate, model.pairs[1].pair_gate):
        assert bool(gates.score.weight.grad.any())


def test_last_phase_predicts_what_the_second_did(nets):
    model, batch = nets.network("sphnet", step=29), nets.several()
    before = model(batch)
    model.start_step(30)
    after = model(batch)
    assert torch.equal(before.lower, after.lower) and torch.equal(before.diagonal, after.diagonal)


def test_only_chosen_paths_are_computed(nets, monkeypatch):
    model, sizes = nets.network("sphnet", step=30), []
    original = pair_layers.pair_product

    def counted(x, y, weights, paths, lmax, **more):
        sizes.append((len(paths), weights.shape[-2]))
        return original(x, y, weights, paths, lmax, **more)

    monkeypatch.setattr(pair_layers, "pair_product", counted)
    model(nets.molecule([6, 1, 8, 1]))
    assert sizes == 4 * [(19, 19)]


def test_pairs_of_every_molecule():
    """ceil((1 - s) P) of each molecule's pairs, whatever the others score; random ones first."""
    pairs = PairGate(3, 0.7).double()
    molecule = torch.tensor(10 * [0] + [2] + 4 * [3])
    x = torch.randn(15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:10] += 5.0
    start_step(pairs, 2 * T, T)
    kept, factors = pairs(x, molecule, 5)
    assert torch.bincount(molecule[kept], minlength=5).tolist() == [3, 0, 1, 2, 0]
    scores = pairs.score(x)[:, 0]
    assert sorted(kept[:3].tolist()) == sorted(scores[:10].topk(3).indices.tolist())
    assert torch.allclose(factors[:3, 0], torch.sigmoid(scores[kept[:3]] - scores[kept[:3]].min()))
    start_step(pairs, 0, T)
    first = pairs(x, molecule, 5)[0]
    start_step(pairs, 1, T)
    second = pairs(x, molecule, 5)[0]
    assert torch.bincount(molecule[first], minlength=5).tolist() == [3, 0, 1, 2, 0]
    assert first.tolist() != second.tolist()
    assert len(pairs.eval()(x, molecule, 5)[0]) == 15


def test_alike_pairs_are_kept_together():
    pairs = PairGate(1, 0.7).double()
    start_step(pairs, 3 * T, T)
    x = torch.tensor([[1.0], [2.0], [2.0], [0.0]], dtype=torch.float64) * pairs.score.weight.detach().sign()
    kept, _ = pairs(x, torch.zeros(4, dtype=torch.int64), 1)
    assert kept.tolist() == [1, 2]  # ceil(0.3 * 4) = 2
    x[3] = x[1]
    assert pairs(x, torch.zeros(4, dtype=torch.int64), 1)[0].tolist() == [1, 2, 3]


def test_pairs_left_out_keep_the_first_layer(nets):
    """The second layer adds to the chosen pairs alone."""
    model, m = nets.network("sphnet", step=30), nets.molecule([6, 1, 8, 1, 7])
    full = model(m)
    with torch.no_grad():
        for p in model.pairs[1].product.outer.parameters():
            p.zero_()
    first = model(m)
    changed = (full.lower - first.lower).abs().amax((1, 2)) > 1e-9
    assert int(changed.sum()) == 3  # ceil(0.3 * 10)


def test_released_code_learns_pairs_from_the_start(nets):
    model = nets.network("sphnet", random_pairs=False).train()
    assert model.pairs[1].pair_gate.phase == ADAPTIVE and model.pairs[1].product.choice.phase == RANDOM


@pytest.mark.parametrize("pair_sparsity", [None, 0.5])
def test_dense_twin_has_no_gates(nets, pair_sparsity):
    model = nets.network("sphnet", sparsity=0.0, pair_sparsity=pair_sparsity)
    assert model.second.pair_gate is None and model.pairs[1].pair_gate is None
    assert model.selfs[0].product.choice().indices is None


def test_gates_of_paths_alone(nets):
    model = nets.network("sphnet", pair_sparsity=0.0, step=30)
    assert model.second.pair_gate is None and model.pairs[1].pair_gate is None
    assert len(model.pairs[1].product.choice().indices) == 19
