"""Degree-wise layers: e3nn's linear map and gate, equivariance with perturbed weights, safe derivatives at zero."""

import pytest
import torch

from tesseral.kernels.irreps import gate, invariants, irreps_linear, irreps_norm, join, split, width
from tesseral.kernels.rotations import wigner_d

CHANNELS = (5, 3, 0, 2)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def blocks(channels=CHANNELS, nodes: int = 4) -> list[torch.Tensor]:
    return split(randn(nodes, width(channels)), channels)


def turn(parts: list[torch.Tensor], seed: int = 0) -> list[torch.Tensor]:
    """Rotated and reflected."""
    q, _ = torch.linalg.qr(randn(3, 3, seed=seed).detach())
    return [d @ b for d, b in zip(wigner_d(-q * torch.linalg.det(q), len(parts) - 1), parts, strict=True)]


def to_e3nn(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([b.transpose(1, 2).flatten(1) for b in parts], dim=-1)


@pytest.fixture
def double():
    """e3nn keeps its coefficients in the default precision of the moment a layer is built."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def all_close(found, expected, tolerance=1e-12) -> bool:
    return all(torch.allclose(a, b, atol=tolerance) for a, b in zip(found, expected, strict=True))


def test_layout():
    x = randn(4, width(CHANNELS))
    parts = split(x, CHANNELS)
    assert [tuple(p.shape) for p in parts] == [(4, 1, 5), (4, 3, 3), (4, 5, 0), (4, 7, 2)]
    assert torch.equal(join(parts), x)
    assert torch.equal(parts[1][:, 2, 1], x[:, 5 + 2 * 3 + 1])  # component outer, channel inner
    with pytest.raises(ValueError, match="are 28 wide"):
        split(x[:, 1:], CHANNELS)


def test_linear_equals_e3nn(double):
    o3 = pytest.importorskip("e3nn.o3")
    inputs, outputs = (4, 3, 2), (2, 5, 3)
    parts = blocks(inputs)
    weights = [randn(a, b, seed=1) for a, b in zip(inputs, outputs, strict=True)]
    layer = o3.Linear(
        o3.Irreps([(c, (l, 1)) for l, c in enumerate(inputs)]),
        o3.Irreps([(c, (l, 1)) for l, c in enumerate(outputs)]),
        internal_weights=False,
        shared_weights=True,
    )
    expected = layer(to_e3nn(parts), torch.cat([w.flatten() for w in weights]))
    assert torch.allclose(to_e3nn(irreps_linear(parts, weights)), expected, atol=1e-12)


def test_gate_equals_e3nn(double):
    nn = pytest.importorskip("e3nn.nn")
    parts = blocks((4 + 3 + 2, 3, 2))
    silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
    layer = nn.Gate("4x0e", [silu], "5x0e", [sigmoid], "3x1e + 2x2e")
    expected = layer(torch.cat([parts[0][:, 0], to_e3nn(parts[1:])], dim=-1))
    # e3nn rescales both functions to unit second moment; ours are taken as they are.
    scale = [activation.acts[0].cst for activation in (layer.act_scalars, layer.act_gates)]
    found = gate(
        parts,
        parts[0][:, 0],
        scalars=lambda t: scale[0] * silu(t),
        gates=lambda t: scale[1] * sigmoid(t),
    )
    assert torch.allclose(to_e3nn(found), expected, atol=1e-12)


@pytest.mark.parametrize("balanced", [False, True])
def test_norm_of_features(balanced):
    parts = blocks(nodes=50)
    ones = [torch.ones(c, dtype=torch.float64) for c in CHANNELS]
    big = [100 * b for b in parts]
    out = irreps_norm(big, ones, balanced=balanced)
    assert torch.allclose(out[0].mean(-1), torch.zeros(50, 1, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(out[0].square().mean(-1), torch.ones(50, 1, dtype=torch.float64), atol=1e-6)
    means = [b.square().mean((1, 2)) for b in (out[1], out[3])]
    numbers = [3 * 3, 7 * 2]
    total = sum(means) / 2 if balanced else (means[0] * numbers[0] + means[1] * numbers[1]) / sum(numbers)
    assert torch.allclose(total, torch.ones(50, dtype=torch.float64), atol=1e-6)


def test_norm_equals_torch_on_scalars():
    parts, scale, bias = blocks((6,)), randn(6, seed=2), randn(6, seed=3)
    (found,) = irreps_norm(parts, [scale], bias=bias, eps=1e-5)
    assert torch.allclose(found, torch.nn.functional.layer_norm(parts[0], (6,), scale, bias, 1e-5), atol=1e-12)


LAYERS = {
    "linear": lambda p: irreps_linear(p, [randn(c, 4, seed=4) for c in CHANNELS], randn(4, seed=5)),
    "norm": lambda p: irreps_norm(p, [randn(c, seed=6) for c in CHANNELS], bias=randn(5, seed=7)),
    "balanced norm": lambda p: irreps_norm(p, [randn(c, seed=6) for c in CHANNELS], balanced=True),
    "norm gate": lambda p: gate(p, invariants(p) @ randn(10, 7, seed=8), gates=torch.tanh),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_layers_are_equivariant_with_any_weights(layer):
    parts = blocks()
    assert all_close(layer(turn(parts)), turn(layer(parts)))


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_derivatives_of_layers(layer):
    x = randn(2, width(CHANNELS), seed=9)
    assert torch.autograd.gradcheck(lambda x: join(layer(split(x, CHANNELS))), (x,))
    assert torch.autograd.gradgradcheck(lambda x: join(layer(split(x, CHANNELS))), (x,))


def test_invariants_are_safe_at_zero():
    x = torch.zeros(1, width(CHANNELS), dtype=torch.float64, requires_grad=True)
    values = invariants(split(x, CHANNELS))
    assert values.shape == (1, 10) and not values.any()
    (gradient,) = torch.autograd.grad(values[:, 5:].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert not gradient.any() and bool(second.isfinite().all())


def test_layers_of_no_nodes():
    parts = blocks(nodes=0)
    assert all(join(layer(parts)).shape[0] == 0 for layer in LAYERS.values())


def test_bad_arguments_are_refused():
    parts = blocks()
    with pytest.raises(ValueError, match="degree 1: matrix"):
        irreps_linear(parts, [randn(5, 2), randn(4, 2)])
    with pytest.raises(ValueError, match="5 matrices for 4 degrees"):
        irreps_linear(parts, [randn(5, 2)] * 5)
    with pytest.raises(ValueError, match="4 controls cannot scale 5 channels"):
        gate(parts, randn(4, 4))
    with pytest.raises(ValueError, match="do not fit channels"):
        irreps_norm(parts, [randn(5)])
