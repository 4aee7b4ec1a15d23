"""Grids: exactness, equivariance of point-wise networks, and the aliasing that SiLU leaves."""

import pytest
import torch

from tesseral.kernels import recompute
from tesseral.kernels.rotations import wigner_d
from tesseral.kernels.sphere import (
    degree_slices,
    from_grid,
    gauss_legendre_grid,
    grid_for_degree,
    grid_mlp,
    grid_product,
    soft_grid,
    to_grid,
)


def rotation(seed: int = 0) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return q * torch.linalg.det(q)


def random_field(lmax: int, channels: int, nodes: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(nodes, (lmax + 1) ** 2, channels, dtype=torch.float64, generator=generator)


def turn(x: torch.Tensor, matrices: list[torch.Tensor]) -> torch.Tensor:
    parts = [d @ x[:, rows] for d, rows in zip(matrices, degree_slices(len(matrices) - 1), strict=True)]
    return torch.cat(parts, dim=1)


def relative_rotation_error(layer, x: torch.Tensor, lmax: int, seeds: int = 4) -> float:
    worst = 0.0
    for seed in range(seeds):
        matrices = wigner_d(rotation(seed), lmax)
        difference = layer(turn(x, matrices)) - turn(layer(x), matrices)
        worst = max(worst, float(difference.norm() / layer(x).norm()))
    return worst


@pytest.mark.parametrize("grid", [gauss_legendre_grid(3, 4, 7), gauss_legendre_grid(2, 10, 20), soft_grid(3, 18, 17)])
def test_round_trip_is_the_identity(grid):
    x = random_field(grid.lmax, 4)
    assert torch.allclose(from_grid(to_grid(x, grid), grid), x, atol=1e-12)
    assert float(grid.weights.sum()) == pytest.approx(4 * torch.pi, rel=1e-12)


@pytest.mark.parametrize("lmax", [1, 2, 3])
@pytest.mark.parametrize("factors", [2, 3])
def test_products_on_the_exact_grid_are_equivariant_to_rounding(lmax, factors):
    grid = grid_for_degree(lmax, (factors + 1) * lmax)
    generator = torch.Generator().manual_seed(4)
    weights = tuple(torch.randn(6, 5, dtype=torch.float64, generator=generator) for _ in range(factors))
    assert relative_rotation_error(lambda x: grid_product(x, grid, weights), random_field(lmax, 6), lmax) < 1e-12


def test_one_point_fewer_than_the_exact_grid_is_not_equivariant():
    """The size rule is sharp: it fails one step below."""
    grid = gauss_legendre_grid(2, 2, 4)
    weights = tuple(torch.randn(6, 5, dtype=torch.float64) for _ in range(2))
    assert relative_rotation_error(lambda x: grid_product(x, grid, weights), random_field(2, 6), 2) > 1e-3


def test_quadratic_network_is_equivariant_to_rounding():
    grid = grid_for_degree(3, 9)
    weights = (torch.randn(8, 16, dtype=torch.float64), torch.randn(16, 8, dtype=torch.float64))

    def layer(x):
        values = to_grid(x, grid) @ weights[0]
        return from_grid(values.square() @ weights[1], grid)

    assert relative_rotation_error(layer, random_field(3, 8), 3) < 1e-12


# relative rotation error of the SiLU mixer, random weights, 64 channels (Facet sheet, section 9)
@pytest.mark.parametrize(
    ("lmax", "grid", "published"),
    [
        (2, gauss_legendre_grid(2, 10, 19), 5.7e-5),
        (3, gauss_legendre_grid(3, 10, 19), 9.5e-4),
        (3, gauss_legendre_grid(3, 7, 13), 1.2e-2),
        (2, soft_grid(2, 18, 17), 1.1e-4),
        (3, soft_grid(3, 18, 17), 1.6e-3),
    ],
    ids=["GL10x19-L2", "GL10x19-L3", "GL7x13-L3", "soft-L2", "soft-L3"],
)
def test_silu_aliasing_is_of_the_published_size(lmax, grid, published):
    assert median_silu_error(grid, lmax) == pytest.approx(published, rel=0.25)


@pytest.mark.parametrize(("lmax", "published"), [(2, 5.7e-5), (3, 9.5e-4)])
def test_silu_aliasing_of_the_mirror_safe_grid_is_below_the_published(lmax, published):
    assert 0 < median_silu_error(gauss_legendre_grid(lmax, 10, 20), lmax) < published


def median_silu_error(grid, lmax: int) -> float:
    errors = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        inner = torch.randn(32, 16, dtype=torch.float64, generator=generator) / 32**0.5
        outer = torch.randn(16, 32, dtype=torch.float64, generator=generator) / 16**0.5
        x = torch.randn(8, (lmax + 1) ** 2, 64, dtype=torch.float64, generator=generator) / (lmax + 1)

        def layer(y, weights=(inner, outer)):
            return grid_mlp(y, grid, weights, heads=2)

        errors.append(relative_rotation_error(layer, x, lmax, seeds=1))
    return float(torch.tensor(errors).median())


def test_even_angles_make_the_grid_closed_under_inversion():
    for n_alpha, closed in ((20, True), (19, False)):
        points = gauss_legendre_grid(1, 10, n_alpha).points
        distances = torch.cdist(-points, points).min(dim=1).values
        assert bool((distances < 1e-7).all()) is closed


def mlp_case(nodes: int = 5) -> tuple:
    generator = torch.Generator().manual_seed(7)
    shapes = ((nodes, 9, 4), (2, 3), (3, 2), (3,), (2,))
    return tuple(torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes)


def small_mlp(x, inner, outer, first, second):
    return grid_mlp(x, grid_for_degree(2, 6), (inner, outer), biases=(first, second), heads=2, lmax=1)


@pytest.mark.parametrize("slice_bytes", [1, 20_000, 1 << 30], ids=["one node", "some nodes", "all nodes"])
def test_derivatives_of_the_network_in_slices(slice_bytes, monkeypatch):
    monkeypatch.setattr(recompute, "SLICE_BYTES", slice_bytes)
    assert torch.autograd.gradcheck(small_mlp, mlp_case())
    assert torch.autograd.gradgradcheck(small_mlp, mlp_case(2))


def test_third_derivative_of_the_network_in_slices(monkeypatch):
    def third(x, *parameters):
        y = small_mlp(x, *parameters).square().sum()
        first = torch.autograd.grad(y, x, create_graph=True)[0]
        second = torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(second.square().sum(), (x, *parameters))

    case = mlp_case()
    whole = third(*case)
    monkeypatch.setattr(recompute, "SLICE_BYTES", 1)
    for a, b in zip(third(*case), whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


def test_the_grid_of_all_nodes_is_never_in_memory(monkeypatch):
    """No tensor of the whole computation, double backward included, is larger than a few slices or the input."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    monkeypatch.setattr(recompute, "SLICE_BYTES", 100_000)
    x, *parameters = mlp_case(nodes=400)
    with Largest() as largest:
        (first,) = torch.autograd.grad(small_mlp(x, *parameters).square().sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), (x, *parameters))
    whole_grid = 400 * grid_for_degree(2, 6).points.shape[0] * 4
    assert largest.size < whole_grid / 2


def test_network_of_no_nodes_and_wrong_weights():
    x, *parameters = mlp_case(nodes=0)
    out = small_mlp(x, *parameters)
    assert out.shape == (0, 4, 4)
    (gradient,) = torch.autograd.grad(out.sum(), parameters[0])
    assert not gradient.any()
    with pytest.raises(ValueError, match="do not fit: weights are"):
        grid_mlp(x, grid_for_degree(2, 6), (parameters[1], parameters[0]), heads=2)
