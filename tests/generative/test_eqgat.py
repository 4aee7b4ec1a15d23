"""EQGAT-diff's network: published sizes, symmetries in float64, batches, extreme sizes, and its formulas."""

import pytest
import torch

from tesseral.generative.eqgat import PRESETS, Eqgat, EqgatConfig, attend
from tesseral.generative.layout import Layout
from tesseral.generative.vocabulary import published_vocabulary

SMALL = EqgatConfig(scalars=12, vectors=5, edges=6, layers=3)


@pytest.mark.parametrize(
    ("config", "extra", "count"),
    [
        (PRESETS["published"], False, 12_305_075),
        (PRESETS["published"], True, 12_311_744),
        (PRESETS["default"], False, 3_612_969),
        (EqgatConfig(256, 64, 32, 12), False, 6_097_619),
        (EqgatConfig(256, 64, 32, 5), False, 2_619_109),
    ],
)
def test_published_parameter_counts(config, extra, count):
    vocabulary = published_vocabulary(extra)
    with torch.device("meta"):
        model = Eqgat(config, [len(c) for c in vocabulary.atoms.values()], len(vocabulary.bonds))
    assert sum(p.numel() for p in model.parameters()) == count


def network(config=SMALL, seed=0, perturb=0.2):
    """A network in float64 with every weight moved away from its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Eqgat(config, [4, 3], 5).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(perturb * torch.randn_like(parameter))
    return model


def inputs(sizes, seed=1):
    """Random noisy molecules as keyword arguments of the network."""
    generator = torch.Generator().manual_seed(seed)
    layout = Layout.of(torch.tensor(sizes))
    n, pairs = len(layout.batch), len(layout.pairs)
    elements = torch.nn.functional.one_hot(torch.randint(4, (n,), generator=generator), 4)
    charges = torch.nn.functional.one_hot(torch.randint(3, (n,), generator=generator), 3)
    bonds = layout.both_ways(torch.randint(5, (pairs,), generator=generator))
    return {
        "layout": layout,
        "atoms": torch.cat([elements, charges], 1).double(),
        "bonds": torch.nn.functional.one_hot(bonds, 5).double(),
        "positions": 1.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64),
        "time": torch.rand(len(sizes), generator=generator, dtype=torch.float64),
    }


def close(a, b, tolerance=1e-10):
    for x, y in zip((a.positions, *a.atoms, a.bonds), (b.positions, *b.atoms, b.bonds), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("norm", ["published", "corrected"])
@pytest.mark.parametrize("reflect", [False, True])
def test_rotation_reflection_and_translation(norm, reflect):
    model, given = network(EqgatConfig(12, 5, 6, 3, norm)), inputs([5, 3, 8])
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))
    rotation = rotation * torch.linalg.det(rotation) * (-1 if reflect else 1)
    before = model(**given)
    shift = torch.tensor([[3.0, -7.0, 2.0], [0.0, 1.0, 0.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    moved = given["positions"] @ rotation.T + shift[given["layout"].batch]
    after = model(**{**given, "positions": moved})
    close(after, before._replace(positions=before.positions @ rotation.T))
    assert float(before.positions.detach().abs().max()) > 0.1  # weights off their start: the test is not about zeros


def test_permutation_of_atoms():
    model, given = network(), inputs([7])
    order = torch.tensor([3, 0, 6, 2, 1, 5, 4])
    source, target = given["layout"].edge_index
    table = torch.zeros(7, 7, 5, dtype=torch.float64)
    table[target, source] = given["bonds"]
    permuted = table[order][:, order][target, source]
    before = model(**given)
    after = model(
        **{
            **given,
            "atoms": given["atoms"][order],
            "positions": given["positions"][order],
            "bonds": permuted,
        }
    )
    logits = given["layout"].both_ways(before.bonds)
    table[target, source] = logits
    expected = table[order][:, order][target, source][given["layout"].pairs]
    close(
        after,
        before._replace(positions=before.positions[order], atoms=tuple(a[order] for a in before.atoms), bonds=expected),
    )


def test_a_molecule_does_not_feel_the_batch():
    model, sizes = network(), [4, 1, 9, 2]
    given = inputs(sizes)
    together, layout = model(**given), given["layout"]
    for g, n in enumerate(sizes):
        nodes, edges = layout.batch == g, layout.edge_batch == g
        alone = model(
            Layout.of(torch.tensor([n])),
            atoms=given["atoms"][nodes],
            bonds=given["bonds"][edges],
            positions=given["positions"][nodes],
            time=given["time"][g : g + 1],
        )
        pairs = layout.edge_batch[layout.pairs] == g
        close(
            alone,
            type(together)(together.positions[nodes], tuple(a[nodes] for a in together.atoms), together.bonds[pairs]),
        )


@pytest.mark.parametrize("sizes", [[1], [2], [181], [1, 1], [1, 181, 2]])
def test_extreme_sizes(sizes):
    model, given = network().float(), inputs(sizes)
    given = {k: v.float() if k != "layout" else v for k, v in given.items()}
    out = model(**given)
    for value in (out.positions, *out.atoms, out.bonds):
        assert bool(torch.isfinite(value).all())
    sum(value.sum() for value in (out.positions, *out.atoms, out.bonds)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_predicted_positions_have_no_mean():
    given = inputs([6, 11])
    positions = network()(**given).positions.detach()
    for g in range(2):
        assert float(positions[given["layout"].batch == g].mean(0).abs().max()) < 1e-12


def test_attention_is_a_softmax_over_the_neighbours():
    layout = Layout.of(torch.tensor([4, 1, 2]))
    generator = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(14, 3, dtype=torch.float64, generator=generator)
    values = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    source, target = layout.edge_index
    expected = torch.zeros(7, 3, dtype=torch.float64)
    for i in range(7):
        weights = torch.softmax(logits[target == i], 0)
        expected[i] = (weights * values[source[target == i]]).sum(0)
    torch.testing.assert_close(attend(layout, logits, values), expected)


def test_messages_see_what_the_paper_lists_in_its_order():
    """The split evaluation equals one linear map of [s_i, s_j, d, a, e, |p_i|, |p_j|]."""
    model, given = network(), inputs([5, 2])
    layer, layout = model.layers[1], given["layout"]
    generator = torch.Generator().manual_seed(2)
    s = torch.randn(7, 12, dtype=torch.float64, generator=generator)
    e = torch.randn(len(layout.reverse), 6, dtype=torch.float64, generator=generator)
    p = given["positions"]
    j, i = layout.edge_index
    d = (p[i] - p[j]).norm(dim=-1, keepdim=True)
    a = (p[i] * p[j]).sum(-1, keepdim=True)
    columns = [s[i], s[j], d, a, e, p[i].norm(dim=-1, keepdim=True), p[j].norm(dim=-1, keepdim=True)]
    expected = layer.message_out(torch.nn.functional.silu(layer.message_in(torch.cat(columns, -1))))
    torch.testing.assert_close(layer._messages(layout, s, p, e, d), expected)


def test_published_norm_divides_by_the_variance():
    given = inputs([5])
    layer = network(EqgatConfig(12, 5, 6, 2)).layers[0].norm
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    s = 3 * torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = torch.randn(5, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    variance, square = s.var(correction=0), v.square().sum(1).mean()
    torch.testing.assert_close(layer(given["layout"], s, v)[0], (s - s.mean()) / variance)
    torch.testing.assert_close(layer(given["layout"], s, v)[1], v / square)
    layer.root = True
    torch.testing.assert_close(layer(given["layout"], s, v)[0], (s - s.mean()) / variance.sqrt())


def test_bf16_autocast_runs_near_the_full_precision():
    model, given = network(perturb=0.02).float(), inputs([9, 12])
    given = {k: v.float() if k != "layout" else v for k, v in given.items()}
    exact = model(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(**given)
    assert rough.positions.dtype == torch.float32
    error = (rough.positions - exact.positions).norm() / exact.positions.norm()
    assert float(error) < 0.05
