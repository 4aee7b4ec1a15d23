"""Gaunt products: point-wise products of functions on the sphere, in coefficients.

``z_k = sqrt(4 pi) sum_ij G_ijk x_i y_j`` in the component basis, G the integrals of three real harmonics, channel by
channel. G is symmetric in all indices, so both gradients are Gaunt products again and every derivative is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from math import isqrt, pi, sqrt

import numpy as np
import torch
from torch import Tensor

from .backends import choose, self_check
from .conventions import gaunt
from .sphere import SphereGrid, from_grid, grid_for_degree, to_grid


def gaunt_product(x: Tensor, y: Tensor, lmax: int) -> Tensor:
    """Product of two fields on the sphere, exact up to rounding.

    Args:
        x: ``(N, (L1+1)^2, C)`` coefficients.
        y: ``(N, (L2+1)^2, C)`` coefficients.
        lmax: largest degree of the result, at most L1 + L2.

    Returns:
        ``(N, (lmax+1)^2, C)``.

    Raises:
        ValueError: shapes that do not fit, or a degree that the product does not reach.

    Source: Gaunt tensor products (arXiv 2401.10216), equation of the product in coefficients.
    """
    l1, l2 = _degree(x), _degree(y)
    if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must agree in nodes and channels")
    if not 0 <= lmax <= l1 + l2:
        raise ValueError(f"lmax = {lmax} is not within 0..{l1 + l2}, the degrees of the product")
    if choose(x, "gaunt_product") != "reference":
        result: Tensor = _SparseProduct.apply(x, y, lmax)
        return result
    return _reference(x, y, lmax)


def _reference(x: Tensor, y: Tensor, lmax: int) -> Tensor:
    l1, l2 = _degree(x), _degree(y)
    grid = _grid(max(l1, l2, lmax), l1 + l2 + lmax).to(x.device)
    return from_grid(to_grid(_padded(x, grid), grid) * to_grid(_padded(y, grid), grid), grid, lmax)


def _degree(x: Tensor) -> int:
    if x.ndim != 3 or (isqrt(x.shape[1])) ** 2 != x.shape[1]:
        raise ValueError(f"coefficients must be (nodes, (L+1)^2, channels), got {tuple(x.shape)}")
    return isqrt(x.shape[1]) - 1


@cache
def _grid(lmax: int, degree: int) -> SphereGrid:
    return grid_for_degree(lmax, degree)


def _padded(x: Tensor, grid: SphereGrid) -> Tensor:
    missing = (grid.lmax + 1) ** 2 - x.shape[1]
    return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x


@cache
def product_terms(l1: int, l2: int, l3: int) -> tuple[tuple[int, int, int, float], ...]:
    """The nonzero ``sqrt(4 pi) G_ijk`` of degrees up to l1, l2 and l3, as (i, j, k, value)."""
    terms = []
    for a, b in product(range(l1 + 1), range(l2 + 1)):
        for c in range(abs(a - b), min(a + b, l3) + 1, 2):
            block = sqrt(4 * pi) * gaunt(a, b, c)
            for i, j, k in np.argwhere(np.abs(block) > 1e-12).tolist():
                terms.append((a * a + i, b * b + j, c * c + k, float(block[i, j, k])))
    return tuple(terms)


@cache
def _contraction(
    l1: int, l2: int, l3: int, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Compiled contraction over `product_terms`."""
    terms, n_out = product_terms(l1, l2, l3), (l3 + 1) ** 2
    if device.type == "cpu":
        from ._numba import compile_contraction

        return compile_contraction(terms, n_out)
    from ._cuda import compile_contraction as compile_for_gpu

    contract = compile_for_gpu(terms, ((l1 + 1) ** 2, (l2 + 1) ** 2, n_out))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, (l + 1) ** 2, 40, generator=generator).to(device, dtype) for l in (l1, l2))
    found = x.new_empty(2, n_out, 40)
    contract(x, y, found)
    self_check("gaunt_product", "cupy", found, _reference(x, y, l3))
    return contract


class _SparseProduct(torch.autograd.Function):
    """The sparse contraction; its backward is made of itself, so every order of derivative exists."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, lmax: int) -> Tensor:
        out = x.new_empty(x.shape[0], (lmax + 1) ** 2, x.shape[2])
        contract = _contraction(_degree(x), _degree(y), lmax, x.dtype, x.device)
        contract(x.detach().contiguous(), y.detach().contiguous(), out)
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        x, y, _ = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        x, y = ctx.saved_tensors
        dx = _SparseProduct.apply(gradient, y, _degree(x)) if ctx.needs_input_grad[0] else None
        dy = _SparseProduct.apply(gradient, x, _degree(y)) if ctx.needs_input_grad[1] else None
        return dx, dy, None
