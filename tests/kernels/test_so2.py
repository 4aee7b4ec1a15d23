"""Rotations and edge frames: quaternions, poles, and the SO(2) form of convolutions against the full tensor product."""

import numpy as np
import pytest
import torch

from tesseral.kernels.conventions import Path, coupling_paths, w3j
from tesseral.kernels.harmonics import spherical_harmonics
from tesseral.kernels.rotations import (
    edge_frames,
    quaternion_to_matrix,
    rotate,
    wigner_d,
    wigner_d_quaternion,
)
from tesseral.kernels.so2 import so2_convolution, so2_linear, so2_weights

# Along every axis, and between the two halves of edge_frames
AXES = torch.tensor(
    [[0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1], [1, 0, 1]], dtype=torch.float64
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def vectors(n: int = 5) -> torch.Tensor:
    return torch.cat([AXES, randn(n, 3).detach()]).requires_grad_()


@pytest.fixture
def double():
    """e3nn keeps its coefficients in the default precision of the moment a layer is built."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


# --- rotations


def test_quaternions_compose_and_turn_harmonics():
    q, v = randn(6, 4), randn(6, 3)
    matrices = quaternion_to_matrix(q)
    assert torch.allclose(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(6, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(quaternion_to_matrix(-2 * q), matrices, atol=1e-14)
    quarter = torch.tensor([0.5**0.5, 0, 0, 0.5**0.5], dtype=torch.float64)  # a quarter turn about z: x to y
    assert torch.allclose(quaternion_to_matrix(quarter)[:, 0], torch.tensor([0.0, 1.0, 0.0]).double(), atol=1e-15)
    turned = (matrices @ v.unsqueeze(-1)).squeeze(-1)
    expected = rotate(spherical_harmonics(v, 6).unsqueeze(-1), wigner_d_quaternion(q, 6)).squeeze(-1)
    assert torch.allclose(spherical_harmonics(turned, 6), expected, atol=1e-12)


def test_wigner_matrices_equal_e3nn(double):
    o3 = pytest.importorskip("e3nn.o3")
    q = torch.nn.functional.normalize(randn(4, 4).detach(), dim=-1)
    for l, d in enumerate(wigner_d_quaternion(q, 6)):
        assert torch.allclose(d, o3.Irrep(l, 1).D_from_quaternion(q), atol=1e-11)


def test_wigner_matrices_of_quaternions_are_differentiable_everywhere():
    special = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.5, 0.5, 0.5, 0.5]]
    q = torch.tensor(special, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: wigner_d_quaternion(q, 2), (q,))
    assert torch.autograd.gradgradcheck(lambda q: wigner_d_quaternion(q, 2)[2], (q,))


def test_rotate_and_back():
    x, d = randn(3, 16, 2), wigner_d_quaternion(randn(3, 4), 3)
    assert torch.allclose(rotate(rotate(x, d), d, inverse=True), x, atol=1e-13)
    with pytest.raises(ValueError, match="degrees up to 1 do not fit"):
        rotate(x, d[:2])


# --- frames


def test_frames_turn_edges_onto_the_polar_axis():
    v = vectors()
    frames = edge_frames(v)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.allclose((frames @ v.unsqueeze(-1)).squeeze(-1), v.norm(dim=-1, keepdim=True) * up, atol=1e-14)
    assert torch.allclose(frames @ frames.mT, torch.eye(3, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(torch.linalg.det(frames), torch.ones(len(v), dtype=torch.float64), atol=1e-14)


def test_derivatives_of_frames_are_bounded():
    """At the poles, on the border between the halves, and near both."""
    near = torch.cat([AXES, AXES + 1e-9, AXES - 1e-9]).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda v: edge_frames(v).sum(0), near)
    assert float(jacobian.abs().max()) < 3.0


# --- convolutions


def full_convolution(x, v, w, paths, graph, *, lmax):
    """The same sum with the full coupling tables, path by path."""
    source, target = graph
    harmonics = spherical_harmonics(v, max(p.l2 for p in paths))
    messages = torch.zeros(len(source), (lmax + 1) ** 2, x.shape[2], dtype=x.dtype)
    for k, p in enumerate(paths):
        rows = [slice(l * l, (l + 1) ** 2) for l in (p.l1, p.l2, p.l3)]
        table = torch.from_numpy((2 * p.l3 + 1) ** 0.5 * w3j(p.l1, p.l2, p.l3))
        coupled = torch.einsum("eic,ej,ijk->ekc", x[source][:, rows[0]], harmonics[:, rows[1]], table)
        added = torch.zeros_like(messages)
        added[:, rows[2]] = coupled * w[:, k : k + 1]
        messages = messages + added
    return torch.zeros(x.shape[0], *messages.shape[1:], dtype=x.dtype).index_add(0, target, messages)


def case(paths, l1, nodes=4, channels=2):
    v = vectors()
    source = torch.arange(len(v)) % nodes
    return (
        randn(nodes, (l1 + 1) ** 2, channels),
        v,
        randn(len(v), len(paths), channels),
        (source, (source + 1) % nodes),
    )


@pytest.mark.parametrize("parity", ["o3", "so3"])
@pytest.mark.parametrize(("l1", "l2", "l3"), [(4, 4, 4), (1, 3, 2), (3, 2, 1)])
def test_equals_the_full_convolution(parity, l1, l2, l3):
    paths = coupling_paths(tuple(range(l1 + 1)), l2, tuple(range(l3 + 1)), parity)
    x, v, w, graph = case(paths, l1)
    expected = full_convolution(x, v, w, paths, graph, lmax=l3)
    found = so2_convolution(x, v, w, paths, graph, l3)
    assert torch.allclose(found, expected, atol=1e-12)
    probe = randn(*expected.shape, seed=3).detach()
    gradients = [torch.autograd.grad((t * probe).sum(), (x, v, w), create_graph=True) for t in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    second = [torch.autograd.grad(g[1].square().sum(), (x, v, w)) for g in gradients]
    for a, b in zip(*second, strict=True):
        assert torch.allclose(a, b, atol=1e-9, rtol=1e-10)


def test_uvu_product_of_e3nn(double):
    o3 = pytest.importorskip("e3nn.o3")
    lmax, c = 4, 3
    paths = coupling_paths(tuple(range(lmax + 1)), lmax, tuple(range(lmax + 1)), "o3")
    x, v, w, _ = case(paths, lmax, channels=c)
    irreps = o3.Irreps([(c, (l, 1)) for l in range(lmax + 1)])
    layer = o3.TensorProduct(
        irreps,
        o3.Irreps([(1, (l, 1)) for l in range(lmax + 1)]),
        irreps,
        [(p.l1, p.l2, p.l3, "uvu", True) for p in paths],
        irrep_normalization="component",
        path_normalization="none",
        shared_weights=False,
        internal_weights=False,
    )
    source = torch.arange(len(v)) % x.shape[0]
    outer = [x[source][:, l * l : (l + 1) ** 2].transpose(1, 2).flatten(1) for l in range(lmax + 1)]
    expected = layer(
        torch.cat(outer, dim=-1), o3.spherical_harmonics(list(range(5)), v, True, "component"), w.flatten(1)
    )
    padded = torch.cat([x, x.new_zeros(len(v), *x.shape[1:])])
    found = so2_convolution(padded, v, w, paths, (source, torch.arange(len(v))), lmax)[: len(v)]
    blocks = [found[:, l * l : (l + 1) ** 2].transpose(1, 2).flatten(1) for l in range(lmax + 1)]
    assert torch.allclose(torch.cat(blocks, dim=-1), expected, atol=1e-12)


def test_energy_is_smooth_where_the_frame_jumps():
    """Across the border between the halves, value and gradient change by as little as the vector does."""
    paths = coupling_paths((0, 1, 2), 2, (0, 1, 2), "so3")
    x, w = randn(2, 9, 2).detach(), randn(1, len(paths), 2).detach()
    results = []
    for y in (1e-9, -1e-9):
        v = torch.tensor([[0.6, y, -0.8]], dtype=torch.float64, requires_grad=True)
        energy = so2_convolution(x, v, w, paths, (torch.tensor([0]), torch.tensor([1])), 2).sin().sum()
        results.append((energy.detach(), torch.autograd.grad(energy, v)[0], edge_frames(v).detach()))
    assert float((results[0][2] - results[1][2]).abs().max()) > 0.5  # the frame does jump
    assert torch.allclose(results[0][0], results[1][0], atol=1e-7)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


def test_derivatives_along_the_axes():
    paths = [Path(1, 1, 1), Path(1, 2, 1), Path(0, 1, 1), Path(1, 1, 0)]
    v = AXES[[0, 1, 4]].clone().requires_grad_()
    graph = (torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0]))
    x, w = randn(2, 4, 1), randn(3, 4, 1)
    assert torch.autograd.gradcheck(lambda *a: so2_convolution(*a, paths, graph, 1), (x, v, w))
    assert torch.autograd.gradgradcheck(lambda *a: so2_convolution(*a, paths, graph, 1), (x, v, w))


def test_no_edges_and_bad_arguments():
    empty = torch.zeros(0, dtype=torch.long)
    paths = [Path(1, 1, 1)]
    out = so2_convolution(torch.ones(3, 4, 2), torch.zeros(0, 3), torch.zeros(0, 1, 2), paths, (empty, empty), 1)
    assert out.shape == (3, 4, 2) and not out.any()
    with pytest.raises(ValueError, match="edges, paths, channels"):
        so2_convolution(torch.ones(3, 4, 2), torch.zeros(0, 3), torch.zeros(0, 2, 2), paths, (empty, empty), 1)
    with pytest.raises(ValueError, match="does not fit x"):
        so2_convolution(
            torch.ones(3, 4, 2), torch.zeros(0, 3), torch.zeros(0, 1, 2), [Path(2, 1, 1)], (empty, empty), 1
        )


# --- SO(2) linear maps


@pytest.mark.parametrize(("l1", "l2", "l3"), [(2, 4, 2), (3, 3, 1), (1, 2, 3)])
def test_linear_map_equals_e3nn_fully_connected(l1, l2, l3, double):
    """Rotate, map, rotate back = a tensor product with one channel matrix per path."""
    o3 = pytest.importorskip("e3nn.o3")
    c, d = 2, 3
    v = vectors()
    x = randn(len(v), (l1 + 1) ** 2, c)
    layer = o3.FullyConnectedTensorProduct(
        o3.Irreps([(c, (l, 1)) for l in range(l1 + 1)]),
        o3.Irreps([(1, (l, 1)) for l in range(l2 + 1)]),
        o3.Irreps([(d, (l, 1)) for l in range(l3 + 1)]),
        internal_weights=False,
        shared_weights=True,
    )
    paths = [Path(i.i_in1, i.i_in2, i.i_out) for i in layer.instructions]
    weights = [randn(c, d, seed=k) for k in range(len(paths))]
    outer = torch.cat([x[:, l * l : (l + 1) ** 2].transpose(1, 2).flatten(1) for l in range(l1 + 1)], dim=-1)
    harmonics = o3.spherical_harmonics(list(range(l2 + 1)), v, True, "component")
    expected = layer(outer, harmonics, torch.cat([w.flatten() for w in weights]))
    # e3nn's path weight is sqrt(2 l3 + 1) times its normalisation
    scaled = [
        w * i.path_weight / (2 * p.l3 + 1) ** 0.5 for w, i, p in zip(weights, layer.instructions, paths, strict=True)
    ]
    frames = wigner_d(edge_frames(v), max(l1, l3))
    mapped = so2_linear(rotate(x, frames), so2_weights(scaled, paths, l1, l3), l3)
    found = rotate(mapped, frames, inverse=True)
    blocks = [found[:, l * l : (l + 1) ** 2].transpose(1, 2).flatten(1) for l in range(l3 + 1)]
    assert torch.allclose(torch.cat(blocks, dim=-1), expected, atol=1e-12)


def test_any_linear_map_commutes_with_turns_about_the_edge():
    """Also with the orders cut at |m| <= 1."""
    angle = 0.7
    about_y = torch.tensor(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]],
        dtype=torch.float64,
    ).unsqueeze(0)
    x = randn(3, 9, 2)
    weights = [randn(6, 3 * 4), randn(2, 4, 2 * 4), randn(2, 2, 4)]
    for used in (weights, weights[:2]):
        turned = so2_linear(rotate(x, wigner_d(about_y, 2)), used, 2)
        assert torch.allclose(turned, rotate(so2_linear(x, used, 2), wigner_d(about_y, 2)), atol=1e-12)
    with pytest.raises(ValueError, match="order 1 do not fit"):
        so2_linear(x, [weights[0], weights[2]], 2)
    with pytest.raises(ValueError, match="degrees allow 1 to 3"):
        so2_linear(x, [], 2)


def test_paths_reach_every_weight():
    """The full set of paths spans as many maps as the SO(2) weights have entries: nothing is lost, nothing added."""
    l1, l3 = 2, 2
    paths = coupling_paths(tuple(range(l1 + 1)), l1 + l3, tuple(range(l3 + 1)), "so3")
    one = torch.ones(1, 1, dtype=torch.float64)
    columns = []
    for k in range(len(paths)):
        weights = [one * (j == k) for j in range(len(paths))]
        columns.append(torch.cat([w.flatten() for w in so2_weights(weights, paths, l1, l3)]))
    matrix = torch.stack(columns)
    free = sum((1 if m == 0 else 2) * (l1 + 1 - m) * (l3 + 1 - m) for m in range(l1 + 1))
    assert len(paths) == free == int(torch.linalg.matrix_rank(matrix))
