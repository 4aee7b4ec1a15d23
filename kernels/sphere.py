"""Functions on the sphere: grids, synthesis (to_grid), analysis (from_grid) and point-wise networks.

Features are ``[nodes, (L+1)^2, channels]``. The grid matrices use "integral" harmonics times sqrt(4 pi), the
component basis, in which the field 1 is (1, 0, 0, ...): pointwise products keep their scale.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, pi, sqrt

import numpy as np
import torch
from torch import Tensor

from .backends import choose
from .constants import Float64Module
from .harmonics import spherical_harmonics
from .recompute import in_slices

SEPARABLE_FROM = 9
"""Degree from which Legendre times Fourier beats the dense product on the CPU.

Measured with one thread, float32, 128 channels, values of nodes that fit the cache: the separable form takes 2.9, 2.4,
1.6, 1.0 times as long as the dense one at degrees 4, 5, 6, 8, although it multiplies 2 to 4 times less.
"""


class SphereGrid(Float64Module):
    """Matrices between coefficients of degrees up to ``lmax`` and values on a grid of the sphere.

    Attributes:
        lmax: largest degree.
        points: ``(n_points, 3)`` unit vectors.
        weights: ``(n_points,)`` quadrature weights, sum 4 pi.
        synthesis: ``(n_points, (lmax+1)^2)``, coefficients to values.
        analysis: ``((lmax+1)^2, n_points)``, values to coefficients.
        separable: the same maps as Legendre times Fourier, where the points are a product of two sets of angles.
    """

    points: Tensor
    weights: Tensor
    synthesis: Tensor
    analysis: Tensor

    def __init__(self, lmax: int, points: Tensor, weights: Tensor, separable: SeparableMaps | None = None):
        super().__init__()
        self.lmax = lmax
        self.separable = separable
        synthesis = spherical_harmonics(points, lmax, normalization="component")
        self.constant("points", points)
        self.constant("weights", weights)
        self.constant("synthesis", synthesis)
        self.constant("analysis", (synthesis * weights[:, None] / (4 * pi)).T.contiguous())


def gauss_legendre_grid(lmax: int, n_beta: int, n_alpha: int) -> SphereGrid:
    """Gauss-Legendre nodes in cos(beta) times uniform angles; exact up to degree min(2 n_beta, n_alpha) - 1.

    An even ``n_alpha`` makes the grid closed under inversion, which mirror-safe networks need.
    """
    cos_beta, w_beta = np.polynomial.legendre.leggauss(n_beta)
    return _product_grid(lmax, cos_beta, w_beta, n_alpha)


def soft_grid(lmax: int, n_beta: int, n_alpha: int) -> SphereGrid:
    """Equiangular grid ``beta_i = pi (i + 1/2) / n_beta`` with its quadrature weights (the published Facet's grid)."""
    beta = pi * (np.arange(n_beta) + 0.5) / n_beta
    odd = np.arange(1, n_beta + 1, 2)
    w_beta = 4 / n_beta * np.sin(beta) * (np.sin(np.outer(beta, odd)) / odd).sum(-1)
    return _product_grid(lmax, np.cos(beta), w_beta, n_alpha)


def grid_for_degree(lmax: int, degree: int) -> SphereGrid:
    """Smallest Gauss-Legendre grid, closed under inversion, that integrates polynomials up to ``degree`` exactly.

    A nu-fold product of fields of degree L, projected on degrees up to L, needs ``degree = (nu + 1) L``.
    """
    n_alpha = degree + 1
    return gauss_legendre_grid(lmax, ceil((degree + 1) / 2), n_alpha + n_alpha % 2)


def _product_grid(lmax: int, cos_beta: np.ndarray, w_beta: np.ndarray, n_alpha: int) -> SphereGrid:
    alpha = 2 * pi * np.arange(n_alpha) / n_alpha
    sin_beta = np.sqrt(1 - cos_beta**2)
    points = np.stack(
        [
            np.outer(sin_beta, np.sin(alpha)),
            np.outer(cos_beta, np.ones(n_alpha)),
            np.outer(sin_beta, np.cos(alpha)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    weights = np.repeat(w_beta * (2 * pi / n_alpha), n_alpha)
    separable = SeparableMaps(lmax, cos_beta, w_beta, n_alpha)
    return SphereGrid(lmax, torch.from_numpy(points), torch.from_numpy(weights), separable)


class SeparableMaps(Float64Module):
    """Synthesis and analysis on a grid of product form: Legendre functions of beta, then a Fourier series in alpha.

    ``values(beta, alpha) = sum_m phi_m(alpha) sum_l P_l^|m|(cos beta) x_lm`` with phi_0 = 1 and, for m > 0,
    ``phi_m = sqrt(2) cos(m alpha)``, ``phi_-m = sqrt(2) sin(m alpha)``.

    Args:
        lmax: largest degree.
        cos_beta, w_beta: nodes and quadrature weights in cos(beta), sum 2.
        n_alpha: number of uniform angles alpha.

    Source: Gaunt tensor products (sheet section 4), separable form.
    """

    def __init__(self, lmax: int, cos_beta: np.ndarray, w_beta: np.ndarray, n_alpha: int):
        super().__init__()
        self.lmax, self.n_beta, self.n_alpha = lmax, len(cos_beta), n_alpha
        meridian = np.stack([np.zeros_like(cos_beta), cos_beta, np.sqrt(1 - cos_beta**2)], axis=-1)
        values = spherical_harmonics(torch.from_numpy(meridian), lmax)  # at alpha = 0
        alpha = 2 * pi * torch.arange(n_alpha, dtype=torch.float64) / n_alpha
        waves = [torch.ones(n_alpha, 1, dtype=torch.float64)]
        for m in range(lmax + 1):
            rows = [l * l + l + m for l in range(m, lmax + 1)]
            legendre = values[:, rows] / (1 if m == 0 else sqrt(2))
            self.constant(f"legendre{m}", legendre)
            self.constant(f"weighted{m}", (legendre * torch.from_numpy(w_beta)[:, None] / (2 * n_alpha)).T)
            if m > 0:
                waves.append(sqrt(2) * torch.stack([(m * alpha).cos(), (m * alpha).sin()], dim=-1))
        self.constant("fourier", torch.cat(waves, dim=-1))

    def synthesise(self, x: Tensor) -> Tensor:
        """Values ``(N, n_beta n_alpha, C)`` of coefficients ``(N, (L+1)^2, C)``, L <= lmax."""
        top, by_order = int(sqrt(x.shape[1])) - 1, []
        for m in range(top + 1):
            legendre = self.get_buffer(f"legendre{m}")[:, : top + 1 - m].to(x.dtype)
            block = x[:, _rows_of_order(m, top)].unflatten(1, (top + 1 - m, -1))
            by_order.append((legendre @ block.flatten(2)).unflatten(2, (-1, x.shape[2])))
        fourier = self.get_buffer("fourier")[:, : 2 * top + 1].to(x.dtype)
        return (fourier @ torch.cat(by_order, dim=2)).flatten(1, 2)

    def analyse(self, values: Tensor, lmax: int) -> Tensor:
        """Coefficients ``(N, (lmax+1)^2, C)`` of values ``(N, n_beta n_alpha, C)``."""
        fourier = self.get_buffer("fourier")[:, : 2 * lmax + 1].to(values.dtype)
        waves = fourier.T @ values.unflatten(1, (self.n_beta, self.n_alpha))
        parts = []
        for m in range(lmax + 1):
            weighted = self.get_buffer(f"weighted{m}")[: lmax + 1 - m].to(values.dtype)
            block = waves[:, :, :1] if m == 0 else waves[:, :, 2 * m - 1 : 2 * m + 1]
            parts.append((weighted @ block.flatten(2)).unflatten(2, (-1, values.shape[2])).flatten(1, 2))
        order = [row for m in range(lmax + 1) for row in _rows_of_order(m, lmax)]
        return torch.cat(parts, dim=1)[:, np.argsort(order).tolist()]


def _rows_of_order(m: int, lmax: int) -> list[int]:
    """Rows (l, m) and (l, -m), l ascending from m."""
    signs = (m,) if m == 0 else (m, -m)
    return [l * l + l + s for l in range(m, lmax + 1) for s in signs]


def to_grid(x: Tensor, grid: SphereGrid) -> Tensor:
    """Values on the grid ``(nodes, n_points, channels)`` of coefficients ``(nodes, (L+1)^2, channels)``, L <= lmax.

    One dense matrix product, or Legendre times Fourier where that is faster (see `SEPARABLE_FROM`).
    """
    if grid.separable is not None and grid.lmax >= SEPARABLE_FROM:
        return grid.separable.synthesise(x)
    return grid.synthesis[:, : x.shape[1]].to(x.dtype) @ x


def from_grid(values: Tensor, grid: SphereGrid, lmax: int | None = None) -> Tensor:
    """Coefficients ``(nodes, (lmax+1)^2, channels)`` of values ``(nodes, n_points, channels)``.

    Args:
        values: the field on the grid.
        grid: the grid.
        lmax: largest degree wanted; None means the grid's.
    """
    lmax = grid.lmax if lmax is None else lmax
    if grid.separable is not None and grid.lmax >= SEPARABLE_FROM:
        return grid.separable.analyse(values, lmax)
    return grid.analysis[: (lmax + 1) ** 2].to(values.dtype) @ values


def grid_mlp(
    x: Tensor,
    grid: SphereGrid,
    weights: tuple[Tensor, Tensor],
    *,
    biases: tuple[Tensor, Tensor] | None = None,
    heads: int = 1,
    lmax: int | None = None,
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.silu,
) -> Tensor:
    """Two-layer network applied at every point of the sphere, the same for all points and heads.

    On the CPU a few nodes at a time, recomputed in backward: the grid stays in the cache and never reaches memory,
    whatever the order of derivative.

    Args:
        x: coefficients ``(nodes, (lmax+1)^2, channels)``.
        grid: where the network is evaluated; too coarse a grid breaks rotation equivariance by aliasing.
        weights: ``(channels/heads, hidden)`` and ``(hidden, channels/heads)``.
        biases: ``(hidden,)`` and ``(channels/heads,)``.
        heads: channel groups that share the weights.
        lmax: largest degree of the result; None means the grid's.
        activation: point-wise function after each of the two maps.

    Returns:
        Coefficients ``(nodes, (lmax+1)^2, channels)``.

    Raises:
        ValueError: shapes that do not fit.

    Source: Facet (arXiv 2509.08418), S2 MLP mixer.
    """
    per_head, hidden = weights[0].shape
    if x.ndim != 3 or x.shape[2] != heads * per_head or weights[1].shape != (hidden, per_head):
        raise ValueError(
            f"x {tuple(x.shape)}, {heads} heads and weights {tuple(weights[0].shape)}, {tuple(weights[1].shape)} "
            "do not fit: weights are (channels/heads, hidden) and (hidden, channels/heads)"
        )

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        split = to_grid(x, grid).unflatten(-1, (heads, -1))
        for layer in range(2):
            split = split @ parameters[layer]
            split = activation(split if biases is None else split + parameters[2 + layer])
        return from_grid(split.flatten(-2), grid, lmax)

    parameters = (*weights, *(biases or ()))
    if activation is torch.nn.functional.silu and choose(x, "grid_mlp") == "triton":
        from .grid_ops import grid_op
        from .grid_reference import fits

        if fits(weights[0].shape, gradient=False):
            top = grid.lmax if lmax is None else lmax
            synthesis = grid.synthesis[:, : x.shape[1]].to(x.dtype)
            analysis = grid.analysis[: (top + 1) ** 2].to(x.dtype)
            result: Tensor = grid_op(x, synthesis, analysis, list(parameters), heads)
            return result
    if x.device.type != "cpu":
        return run(x, *parameters)
    row_bytes = grid.points.shape[0] * (2 * x.shape[2] + heads * hidden) * x.element_size()
    return in_slices(run, (x,), parameters, row_bytes)


def grid_product(x: Tensor, grid: SphereGrid, weights: tuple[Tensor, ...]) -> Tensor:
    """Point-wise products of linear maps of the channels: exactly equivariant on a grid of sufficient degree.

    With ``u_k = x @ weights[k]`` on the grid: the product of all the u_k, ``(len(weights) + 1) * lmax`` is the degree
    that the grid must integrate (see `grid_for_degree`).

    Args:
        x: coefficients ``(nodes, (lmax+1)^2, channels)``.
        grid: the grid.
        weights: matrices ``(channels, hidden)``, one per factor.

    Returns:
        Coefficients ``(nodes, (lmax+1)^2, hidden)``.

    Source: Gaunt tensor products (arXiv 2401.10216), section on many-body products.
    """
    values = to_grid(x, grid)
    product = values @ weights[0]
    for weight in weights[1:]:
        product = product * (values @ weight)
    return from_grid(product, grid)


def degree_slices(lmax: int) -> tuple[slice, ...]:
    """Rows of each degree on the ``(lmax+1)^2`` axis."""
    return tuple(slice(l * l, (l + 1) * (l + 1)) for l in range(lmax + 1))
