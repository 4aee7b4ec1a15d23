"""Gaunt products: closed forms, e3nn, every derivative on every backend."""

import pytest
import torch

from tesseral.kernels.backends import VARIABLE, backends, choose, use_backend
from tesseral.kernels.gaunt import gaunt_product
from tesseral.kernels.rotations import wigner_d

BACKENDS = backends()


def fields(l1: int, l2: int, nodes: int = 3, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = dict(dtype=torch.float64, generator=generator, requires_grad=True)
    return torch.randn(nodes, (l1 + 1) ** 2, channels, **shape), torch.randn(nodes, (l2 + 1) ** 2, channels, **shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gaunt_product_equals_e3nn(backend):
    """e3nn's 'uuu' product over the even paths with the Gaunt strengths."""
    o3 = pytest.importorskip("e3nn.o3")
    from tesseral.kernels.conventions import coupling_paths, gaunt_strength

    lmax, c = 2, 4
    x, y = fields(lmax, lmax, channels=c)
    paths = coupling_paths(tuple(range(3)), lmax, tuple(range(3)), "o3")
    expected = torch.zeros(x.shape[0], 9, c, dtype=torch.float64)
    for p in paths:
        single = o3.TensorProduct(
            o3.Irreps([(c, (p.l1, 1))]),
            o3.Irreps([(c, (p.l2, 1))]),
            o3.Irreps([(c, (p.l3, 1))]),
            [(0, 0, 0, "uuu", False, 1.0)],
            irrep_normalization="none",
            path_normalization="none",
        ).double()
        a = x[:, p.l1**2 : (p.l1 + 1) ** 2].transpose(1, 2).flatten(1)
        b = y[:, p.l2**2 : (p.l2 + 1) ** 2].transpose(1, 2).flatten(1)
        block = single(a, b).unflatten(-1, (c, 2 * p.l3 + 1)).transpose(1, 2)
        strength = gaunt_strength(p.l1, p.l2, p.l3) * (4 * torch.pi) ** 0.5
        expected[:, p.l3**2 : (p.l3 + 1) ** 2] += strength * block
    with use_backend(backend):
        assert torch.allclose(gaunt_product(x, y, lmax), expected, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("l1", "l2", "lmax"), [(0, 0, 0), (2, 1, 3), (1, 2, 0), (3, 3, 3), (2, 3, 5)])
def test_gaunt_product_is_the_pointwise_product(backend, l1, l2, lmax):
    from tesseral.kernels.harmonics import spherical_harmonics
    from tesseral.kernels.sphere import grid_for_degree

    x, y = fields(l1, l2)
    grid = grid_for_degree(max(l1, l2, lmax), l1 + l2 + lmax)
    points = spherical_harmonics(grid.points, max(l1, l2, lmax))
    values = (points[:, : x.shape[1]] @ x) * (points[:, : y.shape[1]] @ y)
    weights = (grid.weights / (4 * torch.pi))[:, None] * points[:, : (lmax + 1) ** 2]
    with use_backend(backend):
        assert torch.allclose(gaunt_product(x, y, lmax), weights.T @ values, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_constant_field_is_the_unit(backend):
    x, _ = fields(2, 0)
    one = torch.ones(3, 1, 2, dtype=torch.float64)
    with use_backend(backend):
        assert torch.allclose(gaunt_product(x, one, 2), x, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gaunt_product_rotates(backend):
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    d = torch.block_diag(*wigner_d(q, 3))
    x, y = fields(3, 3)
    with use_backend(backend):
        assert torch.allclose(gaunt_product(d @ x, d @ y, 3), d @ gaunt_product(x, y, 3), atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("l1", "l2", "lmax"), [(1, 2, 2), (2, 2, 0)])
def test_gaunt_product_derivatives(backend, l1, l2, lmax):
    x, y = fields(l1, l2, nodes=2)
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda a, b: gaunt_product(a, b, lmax), (x, y))
        assert torch.autograd.gradgradcheck(lambda a, b: gaunt_product(a, b, lmax), (x, y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_a_sum_has_stride_zero(backend):
    """`.sum()` hands back an expanded cotangent; a kernel that ignores strides reads out of bounds."""
    x, y = fields(2, 2)
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(gaunt_product(x, y, 2).sum(), x)
        (expected,) = torch.autograd.grad((gaunt_product(x, y, 2) * torch.ones(3, 9, 2)).sum(), x)
        strided = gaunt_product(x.transpose(0, 2).contiguous().transpose(0, 2), y, 2)
        assert torch.allclose(strided, gaunt_product(x, y, 2))
    assert torch.allclose(gradient, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_nodes(backend):
    with use_backend(backend):
        assert gaunt_product(torch.zeros(0, 4, 3), torch.zeros(0, 9, 3), 2).shape == (0, 9, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_accuracy(backend):
    x, y = fields(3, 3, nodes=20, channels=16)
    with use_backend(backend):
        exact = gaunt_product(x, y, 3).detach()
        single = gaunt_product(x.float(), y.float(), 3).detach()
    assert single.dtype == torch.float32
    assert float((single - exact).norm() / exact.norm()) < 1e-6


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(nodes, \(L\+1\)\^2, channels\)"):
        gaunt_product(torch.zeros(2, 5, 1), torch.zeros(2, 4, 1), 1)
    with pytest.raises(ValueError, match="agree in nodes and channels"):
        gaunt_product(torch.zeros(2, 4, 1), torch.zeros(2, 4, 3), 1)
    with pytest.raises(ValueError, match=r"not within 0\.\.2"):
        gaunt_product(torch.zeros(2, 4, 1), torch.zeros(2, 4, 1), 3)


def test_choice_of_backend(monkeypatch):
    x = torch.zeros(1)
    assert choose(x, "gaunt_product") == ("numba" if "numba" in BACKENDS else "reference")
    assert choose(x.bfloat16(), "gaunt_product") == "reference"
    monkeypatch.setenv(VARIABLE, "reference")
    assert choose(x, "gaunt_product") == "reference"
    with use_backend(BACKENDS[-1]):
        assert choose(x, "gaunt_product") == BACKENDS[-1]
    monkeypatch.setenv(VARIABLE, "abacus")
    with pytest.raises(ValueError, match=r"'abacus' is not available here; available: reference"):
        choose(x, "gaunt_product")
