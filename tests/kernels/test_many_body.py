"""Products of many fields, the surface bracket, and the 2D-Fourier oracle of the Gaunt product."""

from itertools import product

import numpy as np
import pytest
import torch

from tesseral.kernels import gaunt as module
from tesseral.kernels.backends import backends, use_backend
from tesseral.kernels.conventions import bracket_strength, surface_bracket_table, w3j
from tesseral.kernels.gaunt import gaunt_power, gaunt_product, gaunt_products, surface_bracket
from tesseral.kernels.rotations import wigner_d
from tesseral.kernels.sphere import gauss_legendre_grid, grid_for_degree

BACKENDS = [name for name in backends() if name in ("reference", "numba")]


def fields(*degrees: int, nodes: int = 3, channels: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(nodes, (l + 1) ** 2, channels, dtype=torch.float64, generator=generator, requires_grad=True)
        for l in degrees
    ]


def rotation(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    return q * torch.linalg.det(q)


# --- the surface bracket


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((1, 1, 1), 1.196827),
        ((1, 2, 2), 2.676186),
        ((2, 2, 3), 5.352372),
        ((1, 3, 3), 4.478116),
        ((2, 3, 2), 5.352372),
        ((3, 3, 5), 12.927207),
    ],
)
def test_closed_form_strengths_of_the_bracket(path, value):
    assert bracket_strength(*path) == pytest.approx(value, abs=1e-6)
    assert np.linalg.norm(surface_bracket_table(*path)) == pytest.approx(value, abs=1e-6)


def test_the_bracket_has_the_odd_paths_and_only_those():
    for path in product(range(5), range(5), range(5)):
        if abs(path[0] - path[1]) <= path[2] <= path[0] + path[1]:
            assert (bracket_strength(*path) > 1e-3) == (sum(path) % 2 == 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bracket_of_two_vectors_is_their_cross_product(backend):
    x, y = fields(1, 1)
    with use_backend(backend):
        found = surface_bracket(x, y, 1)
    expected = 3**0.5 * torch.linalg.cross(x[:, 1:], y[:, 1:], dim=1)
    assert torch.allclose(found[:, 1:], expected, atol=1e-13)
    assert float(found[:, 0].detach().abs().max()) < 1e-13


def test_the_bracket_is_what_gradients_on_the_sphere_say():
    """``r . (grad f x grad g)`` by automatic differentiation of the fields, with no table and no grid of ours."""
    from tesseral.kernels.harmonics_reference import reference_harmonics

    x, y = fields(2, 3, nodes=1, channels=1)
    points = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1).requires_grad_()
    slopes = [
        torch.autograd.grad((reference_harmonics(points, l) @ f[0]).sum(), points)[0]
        for l, f in ((2, x.detach()), (3, y.detach()))
    ]
    expected = (points * torch.linalg.cross(*slopes)).sum(-1)
    found = reference_harmonics(points, 5) @ surface_bracket(x, y, 5)[0]
    assert torch.allclose(found[:, 0], expected, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("l1", "l2", "lmax"), [(1, 1, 2), (2, 1, 2), (3, 3, 3)])
def test_product_and_bracket_reach_every_clebsch_gordan_path(backend, l1, l2, lmax):
    """A dense contraction with the symbols of all paths, odd ones included."""
    x, y = fields(l1, l2)
    expected = torch.zeros(3, (lmax + 1) ** 2, 2, dtype=torch.float64)
    for a, b, c in product(range(l1 + 1), range(l2 + 1), range(lmax + 1)):
        if not abs(a - b) <= c <= a + b:
            continue
        strength = (
            bracket_strength(a, b, c) if (a + b + c) % 2 else module.gaunt(a, b, c).ravel() @ w3j(a, b, c).ravel()
        )
        assert strength > 0.0
        table = torch.from_numpy((4 * np.pi) ** 0.5 * strength * w3j(a, b, c))
        blocks = x[:, a * a : (a + 1) ** 2], y[:, b * b : (b + 1) ** 2]
        expected[:, c * c : (c + 1) ** 2] += torch.einsum("nia,nja,ijk->nka", *blocks, table)
    with use_backend(backend):
        assert torch.allclose(gaunt_product(x, y, lmax, bracket=True), expected, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bracket_rotates_and_is_pseudo_under_inversion(backend):
    x, y = fields(3, 2)
    d3, d2 = (torch.block_diag(*wigner_d(rotation(), l)) for l in (3, 2))
    with use_backend(backend):
        turned = surface_bracket(d3 @ x, d2 @ y, 3)
        plain = surface_bracket(x, y, 3)
        parity = torch.block_diag(*wigner_d(-torch.eye(3, dtype=torch.float64), 3))
        mirrored = surface_bracket(parity @ x, parity[:9, :9] @ y, 3)
    assert torch.allclose(turned, d3 @ plain, atol=1e-11)
    assert torch.allclose(mirrored, -(parity @ plain), atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("product_of", [surface_bracket, lambda x, y, lmax: gaunt_product(x, y, lmax, bracket=True)])
def test_derivatives_of_the_bracket(backend, product_of):
    x, y = fields(1, 2, nodes=2)
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda a, b: product_of(a, b, 2), (x, y))
        assert torch.autograd.gradgradcheck(lambda a, b: product_of(a, b, 2), (x, y))


# --- many factors


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("degrees", "lmax"), [((2,), 1), ((1, 2), 3), ((1, 2, 1), 2), ((2, 2, 2), 6), ((1, 1, 1, 1), 0)]
)
def test_products_of_many_factors_are_pointwise(backend, degrees, lmax):
    """Against values on a grid much finer than needed."""
    factors = fields(*degrees)
    fine = gauss_legendre_grid(6, 20, 40)
    values = torch.ones(1, dtype=torch.float64)
    for f in factors:
        values = values * (fine.synthesis[:, : f.shape[1]] @ f)
    with use_backend(backend):
        found = gaunt_products(factors, lmax)
    assert torch.allclose(found, (fine.analysis @ values)[:, : (lmax + 1) ** 2], atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "grid"])
def test_both_routes_and_their_derivatives(backend, sparse, monkeypatch):
    monkeypatch.setattr(module, "_few_terms", lambda steps: sparse)
    factors = fields(1, 2, 1, nodes=2, channels=1)
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *f: gaunt_products(f, 1), factors)
        assert torch.autograd.gradgradcheck(lambda *f: gaunt_products(f, 1), factors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "grid"])
def test_weighted_powers(backend, sparse, monkeypatch):
    monkeypatch.setattr(module, "_few_terms", lambda steps: sparse)
    (x,) = fields(2)
    generator = torch.Generator().manual_seed(2)
    shapes = [(3, 2, 2), (1, 2, 1), (3, 1, 2)]
    weights = [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]
    degrees = torch.tensor([0, 1, 1, 1])

    def expected(x, *weights):
        powers = [x[:, :4], gaunt_product(x, x, 1), gaunt_product(gaunt_product(x, x, 4), x, 1)]
        full = [w.expand(3, 2, 2)[:, degrees] for w in weights]
        return sum(w * p for w, p in zip(full, powers, strict=True))

    with use_backend(backend):
        assert torch.allclose(gaunt_power(x, weights, 1), expected(x, *weights), atol=1e-12)
        assert torch.autograd.gradcheck(lambda a, *w: gaunt_power(a, w, 1), (x, *weights))
        assert torch.autograd.gradgradcheck(lambda a, *w: gaunt_power(a, w, 1), (x, *weights))


def test_high_degrees_take_the_grid_and_agree(monkeypatch):
    x, y = fields(3, 3)
    sparse = gaunt_product(x, y, 3, bracket=True)
    monkeypatch.setattr(module, "MAX_TERMS", 10)
    module._contraction.cache_clear()
    assert torch.allclose(gaunt_product(x, y, 3, bracket=True), sparse, atol=1e-12)
    module._contraction.cache_clear()


def test_no_nodes_and_bad_arguments():
    empty = torch.zeros(0, 9, 2)
    assert gaunt_products([empty, empty, empty], 2).shape == (0, 9, 2)
    assert gaunt_power(empty, [torch.ones(1, 3, 1)] * 2, 2).shape == (0, 9, 2)
    assert surface_bracket(empty, empty, 1).shape == (0, 4, 2)
    with pytest.raises(ValueError, match="at least one factor"):
        gaunt_products([], 1)
    with pytest.raises(ValueError, match=r"not within 0\.\.6"):
        gaunt_products([empty] * 3, 7)
    with pytest.raises(ValueError, match="one per power"):
        gaunt_power(empty, [], 1)


@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
def test_operator_contract_and_compilation():
    """Schema and shapes without data as torch checks them; compiled gradients equal eager ones."""
    x, y = fields(2, 1)
    torch.library.opcheck(module.product_op, (x, y, 2, "all"), test_utils=("test_schema", "test_faketensor"))

    def energy(x, y):
        return module.product_op(module.product_op(x, y, 2, "even"), x, 2, "odd").square().sum()

    eager = torch.autograd.grad(energy(x, y), (x, y))
    compiled = torch.autograd.grad(torch.compile(energy, backend="aot_eager", fullgraph=True)(x, y), (x, y))
    for a, b in zip(eager, compiled, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


# --- oracle: the product as a convolution of 2D Fourier coefficients


def fourier_product(x: np.ndarray, y: np.ndarray, l1: int, l2: int, lmax: int) -> np.ndarray:
    """Gaunt product through the torus: SH to 2D Fourier series, convolution, and back by closed-form integrals.

    Source: Gaunt tensor products (arXiv 2401.10216), sheet section 3.
    """
    size = 2 * (l1 + l2 + lmax) + 1
    fx, fy, fz = (torus_coefficients(l, size) for l in (l1, l2, lmax))
    convolved = np.fft.ifft2(np.fft.fft2(np.einsum("kuv,k->uv", fx, x)) * np.fft.fft2(np.einsum("kuv,k->uv", fy, y)))
    orders = np.fft.fftfreq(size, 1 / size).round().astype(int)
    # integral over beta of exp(i n beta) sin(beta), n the sum of two orders
    n = orders[:, None] + orders[None, :]
    even = np.where(n % 2 == 0, 2 / (1.0 - np.where(n % 2 == 0, n, 0) ** 2), 0.0).astype(complex)
    weights = even + 0.5j * np.pi * ((n == 1).astype(float) - (n == -1))
    flipped = fz[:, :, (-np.arange(size)) % size]
    return 2 * np.pi * np.einsum("kwv,uw,uv->k", flipped, weights, convolved).real


def torus_coefficients(lmax: int, size: int) -> np.ndarray:
    """Fourier coefficients of the integral-normalised harmonics continued to the torus, FFT order."""
    from tesseral.kernels.harmonics_reference import reference_harmonics

    angles = 2 * np.pi * np.arange(size) / size
    beta, alpha = np.meshgrid(angles, angles, indexing="ij")
    points = np.stack([np.sin(beta) * np.sin(alpha), np.cos(beta), np.sin(beta) * np.cos(alpha)], axis=-1)
    values = reference_harmonics(torch.from_numpy(points), lmax).numpy() / (4 * np.pi) ** 0.5
    return np.fft.fft2(values, axes=(0, 1)).transpose(2, 0, 1) / size**2


@pytest.mark.parametrize(("l1", "l2", "lmax"), [(1, 1, 2), (2, 3, 2), (3, 3, 4)])
def test_gaunt_product_equals_the_fourier_oracle(l1, l2, lmax):
    x, y = (f.detach() for f in fields(l1, l2, nodes=1, channels=1))
    expected = (4 * np.pi) ** 0.5 * fourier_product(x[0, :, 0].numpy(), y[0, :, 0].numpy(), l1, l2, lmax)
    found = gaunt_product(x, y, lmax)[0, :, 0].numpy()
    assert np.allclose(found, expected, atol=1e-12)


def test_separable_maps_equal_the_dense_ones():
    for lmax in (2, 5, 9):
        grid = grid_for_degree(lmax, 3 * lmax)
        x = torch.randn(3, (lmax + 1) ** 2, 2, dtype=torch.float64)
        values = grid.synthesis @ x
        assert torch.allclose(grid.separable.synthesise(x), values, atol=1e-12)
        assert torch.allclose(grid.separable.synthesise(x[:, :4]), grid.synthesis[:, :4] @ x[:, :4], atol=1e-12)
        assert torch.allclose(grid.separable.analyse(values, lmax), x, atol=1e-12)
        assert torch.allclose(grid.separable.analyse(values, 1), x[:, :4], atol=1e-12)
