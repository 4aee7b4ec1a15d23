"""Functions on the sphere: grids, synthesis (to_grid), analysis (from_grid) and point-wise networks.

Features are ``[nodes, (L+1)^2, channels]``. The grid matrices use "integral" harmonics times sqrt(4 pi), the
component basis, in which the field 1 is (1, 0, 0, ...): pointwise products keep their scale.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, pi

import numpy as np
import torch
from torch import Tensor

from .constants import Float64Module
from .harmonics import spherical_harmonics


class SphereGrid(Float64Module):
    """Matrices between coefficients of degrees up to ``lmax`` and values on a grid of the sphere.

    Attributes:
        lmax: largest degree.
        points: ``(n_points, 3)`` unit vectors.
        weights: ``(n_points,)`` quadrature weights, sum 4 pi.
        synthesis: ``(n_points, (lmax+1)^2)``, coefficients to values.
        analysis: ``((lmax+1)^2, n_points)``, values to coefficients.
    """

    points: Tensor
    weights: Tensor
    synthesis: Tensor
    analysis: Tensor

    def __init__(self, lmax: int, points: Tensor, weights: Tensor):
        super().__init__()
        self.lmax = lmax
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
    return SphereGrid(lmax, torch.from_numpy(points), torch.from_numpy(weights))


def to_grid(x: Tensor, grid: SphereGrid) -> Tensor:
    """Values on the grid ``(nodes, n_points, channels)`` of coefficients ``(nodes, (lmax+1)^2, channels)``."""
    return grid.synthesis.to(x.dtype) @ x


def from_grid(values: Tensor, grid: SphereGrid, lmax: int | None = None) -> Tensor:
    """Coefficients ``(nodes, (lmax+1)^2, channels)`` of values ``(nodes, n_points, channels)``.

    Args:
        values: the field on the grid.
        grid: the grid.
        lmax: largest degree wanted; None means the grid's.
    """
    rows = (grid.lmax + 1) ** 2 if lmax is None else (lmax + 1) ** 2
    return grid.analysis[:rows].to(values.dtype) @ values


def grid_mlp(
    x: Tensor,
    grid: SphereGrid,
    weights: tuple[Tensor, Tensor],
    *,
    heads: int = 1,
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.silu,
) -> Tensor:
    """Two-layer network applied at every point of the sphere, the same for all points and heads, without biases.

    Args:
        x: coefficients ``(nodes, (lmax+1)^2, channels)``.
        grid: where the network is evaluated; too coarse a grid breaks rotation equivariance by aliasing.
        weights: ``(channels/heads, hidden)`` and ``(hidden, channels/heads)``.
        heads: channel groups that share the weights.
        activation: point-wise function after each of the two maps.

    Returns:
        Coefficients, shape of x.

    Source: Facet (arXiv 2509.08418), S2 MLP mixer.
    """
    values = to_grid(x, grid)
    split = values.unflatten(-1, (heads, -1))
    split = activation(activation(split @ weights[0]) @ weights[1])
    return from_grid(split.flatten(-2), grid)


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
