"""Products of functions on the sphere, in coefficients: point-wise (Gaunt) products and the surface bracket.

Point-wise product: ``z_k = sqrt(4 pi) sum_ij G_ijk x_i y_j`` in the component basis, G the integrals of three real
harmonics, channel by channel. It has the paths with even ``l1 + l2 + l3``. The bracket ``{f, g} = r . (grad f x grad
g)`` has the odd ones: its table is totally antisymmetric where G is totally symmetric. With T one of G, B, G + B:
``T_ijk = T_jki``, so the gradients of ``z = T(x, y)`` are ``T(y, dz)`` and ``T(dz, x)``: every derivative is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from math import isqrt, pi, sqrt

import numpy as np
import torch
from torch import Tensor

from .backends import choose, self_check
from .conventions import gaunt, surface_bracket_table
from .harmonics_reference import reference_harmonics
from .library import below_autograd, define, recording, with_gradients
from .recompute import SLICE_BYTES, in_slices
from .sphere import SphereGrid, from_grid, grid_for_degree, to_grid

EVEN, ODD, ALL = "even", "odd", "all"
MAX_TERMS = 2500
"""Nonzero coefficients up to which they are contracted one by one on the CPU; a grid is faster beyond.

Measured with one thread, float32, 1000 nodes, 128 channels, sparse against grid, ms: degree 3 4.5 against 14, degree 4
9 against 30; three factors of degree 2 9.7 against 25, of degree 3 20 against 35. From degree 5 on the generated code
takes minutes to compile, and the grid needs 49 ms there.
"""


def gaunt_product(x: Tensor, y: Tensor, lmax: int, *, bracket: bool = False) -> Tensor:
    """Product of two fields on the sphere, exact up to rounding.

    Args:
        x: ``(N, (L1+1)^2, C)`` coefficients.
        y: ``(N, (L2+1)^2, C)`` coefficients.
        lmax: largest degree of the result, at most L1 + L2.
        bracket: add `surface_bracket`, which brings the paths with odd l1 + l2 + l3: for rotations, not for
            reflections, because it adds pseudo-tensors to tensors.

    Returns:
        ``(N, (lmax+1)^2, C)``.

    Raises:
        ValueError: shapes that do not fit, or a degree that the product does not reach.

    Source: Gaunt tensor products (arXiv 2401.10216), equation of the product in coefficients.
    """
    return _dispatch(x, y, lmax, ALL if bracket else EVEN)


def surface_bracket(x: Tensor, y: Tensor, lmax: int) -> Tensor:
    """Bracket ``{f, g} = r . (grad f x grad g)`` of two fields on the sphere, exact up to rounding.

    Pseudo-tensors from tensors: degree l of the result has the parity -(-1)^l if x and y have (-1)^l. It contains the
    cross product of vectors. Strengths grow with the degrees: divide degree l of the inputs by sqrt(l (l + 1)).

    Args:
        x: ``(N, (L1+1)^2, C)`` coefficients.
        y: ``(N, (L2+1)^2, C)`` coefficients.
        lmax: largest degree of the result, at most L1 + L2; degree L1 + L2 and degree 0 are zero.

    Returns:
        ``(N, (lmax+1)^2, C)``.

    Raises:
        ValueError: shapes that do not fit, or a degree that the product does not reach.

    Source: Fast contracted Clebsch-Gordan tensor products (arXiv 2605.15073).
    """
    return _dispatch(x, y, lmax, ODD)


def gaunt_products(factors: Sequence[Tensor], lmax: int) -> Tensor:
    """Point-wise product of any number of fields, exact up to rounding.

    One factor after the other while the coefficients are few (see `MAX_TERMS`), else all on one grid that is exact
    for the whole product and lives in the cache, not in memory.

    Args:
        factors: coefficients ``(N, (L_i+1)^2, C)``.
        lmax: largest degree of the result, at most the sum of the L_i.

    Returns:
        ``(N, (lmax+1)^2, C)``.

    Raises:
        ValueError: no factor, shapes that do not fit, or a degree that the product does not reach.

    Source: Gaunt tensor products (arXiv 2401.10216), many-body products.
    """
    if not factors:
        raise ValueError("a product needs at least one factor")
    total = _checked_degrees(factors, lmax)
    steps = _steps([_degree(f) for f in factors], lmax)
    if choose(factors[0], "gaunt_product") != "reference" and _few_terms(steps):
        out = factors[0][:, : (lmax + 1) ** 2] if len(factors) == 1 else factors[0]
        for factor, (_, _, degree) in zip(factors[1:], steps, strict=True):
            out = gaunt_product(out, factor, degree)
        return out
    grid = _grid(max(lmax, *(_degree(f) for f in factors)), total + lmax, factors[0].device)

    def run(*factors: Tensor) -> Tensor:
        values = to_grid(factors[0], grid)
        for factor in factors[1:]:
            values = values * to_grid(factor, grid)
        return from_grid(values, grid, lmax)

    return _on_grid(run, tuple(factors), (), grid, fields=2 * len(factors))


def gaunt_power(x: Tensor, weights: Sequence[Tensor], lmax: int) -> Tensor:
    """Weighted powers of one field: ``sum_nu weights[nu - 1] * x^nu``, the powers point-wise on the sphere.

    The many-body features of density-like coefficients: power nu has body order nu + 1.

    Args:
        x: ``(N, (L+1)^2, C)`` coefficients.
        weights: per power 1, 2, ... one factor per node, degree and channel, ``(N, lmax+1, C)``; axes of size 1
            broadcast.
        lmax: largest degree of the result, at most L.

    Returns:
        ``(N, (lmax+1)^2, C)``.

    Raises:
        ValueError: no weights, or shapes that do not fit.

    Source: Gaunt tensor products (arXiv 2401.10216), many-body products; MACE (arXiv 2206.07697), equation 10.
    """
    top, degree = len(weights), _checked_degrees([x], lmax)
    n, _, channels = x.shape
    if top == 0 or any(w.ndim != 3 for w in weights):
        raise ValueError(f"weights must be (nodes, lmax + 1, channels), one per power; got {len(weights)}")
    full = torch.stack([w.expand(n, lmax + 1, channels) for w in weights], dim=1)
    steps = _steps([degree] * top, lmax)
    sparse = choose(x, "gaunt_product") != "reference" and _few_terms(steps)
    grid = _grid(degree, top * degree + lmax, x.device)
    degrees = [l for l in range(lmax + 1) for _ in range(2 * l + 1)]

    def run(x: Tensor, weights: Tensor) -> Tensor:
        per_row = weights[:, :, degrees]
        out = x[:, : (lmax + 1) ** 2] * per_row[:, 0]
        if top == 1:
            return out
        if sparse:
            power = x
            for nu, (_, _, step) in enumerate(steps, start=1):
                power = gaunt_product(power, x, step)
                out = out + power[:, : out.shape[1]] * per_row[:, nu]
            return out
        base = values = to_grid(x, grid)
        for nu in range(1, top):
            values = values * base
            out = out + from_grid(values, grid, lmax) * per_row[:, nu]
        return out

    return run(x, full) if sparse else _on_grid(run, (x, full), (), grid, fields=top + 1)


def _dispatch(x: Tensor, y: Tensor, lmax: int, paths: str) -> Tensor:
    _checked_degrees((x, y), lmax)
    if choose(x, "gaunt_product") != "reference":
        result: Tensor = product_op(x, y, lmax, paths)
        return result
    return _reference(x, y, lmax, paths)


def _steps(degrees: Sequence[int], lmax: int) -> list[tuple[int, int, int]]:
    """Degrees (L1, L2, L3) of the products that take in one factor after the other, without what lmax never sees."""
    steps, reached = [], degrees[0]
    for k, degree in enumerate(degrees[1:], start=1):
        out = min(reached + degree, lmax + sum(degrees[k + 1 :]))
        steps.append((reached, degree, out))
        reached = out
    return steps


def _few_terms(steps: list[tuple[int, int, int]]) -> bool:
    return all(len(product_terms(*step)) <= MAX_TERMS for step in steps)


def _checked_degrees(factors: Sequence[Tensor], lmax: int) -> int:
    """Degree of the product of all factors."""
    total, first = sum(_degree(f) for f in factors), factors[0]
    for f in factors[1:]:
        if f.shape[0] != first.shape[0] or f.shape[2] != first.shape[2]:
            raise ValueError(f"x {tuple(first.shape)} and y {tuple(f.shape)} must agree in nodes and channels")
    if not 0 <= lmax <= total:
        raise ValueError(f"lmax = {lmax} is not within 0..{total}, the degrees of the product")
    return total


def _reference(x: Tensor, y: Tensor, lmax: int, paths: str = EVEN) -> Tensor:
    """Both products point by point on a grid that is exact for them."""
    l1, l2 = _degree(x), _degree(y)
    grid = _grid(max(l1, l2, lmax), l1 + l2 + lmax, x.device)
    values = []
    if paths != ODD:
        values.append(to_grid(x, grid) * to_grid(y, grid))
    if paths != EVEN:
        xs, ys = (
            [d[:, : t.shape[1]].to(t.dtype) @ t for d in _slopes(grid.lmax, l1 + l2 + lmax, t.device)] for t in (x, y)
        )
        values.append(xs[0] * ys[1] - xs[1] * ys[0])
    return from_grid(sum(values[1:], values[0]), grid, lmax)


@cache
def _slopes(lmax: int, degree: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Derivatives of the harmonics along the directions of beta and alpha at the points of `_grid`."""
    points = _grid(lmax, degree, torch.device("cpu")).points
    x, _, z = points.unbind(-1)
    ring = (x**2 + z**2).sqrt()
    alpha = torch.stack([z, torch.zeros_like(x), -x], dim=-1) / ring[:, None]
    beta = torch.linalg.cross(alpha, points)

    def along(tangent: Tensor) -> Tensor:
        slope: Tensor = torch.func.jvp(lambda v: reference_harmonics(v, lmax), (points,), (tangent,))[1]
        return slope.to(device)

    return along(beta), along(alpha)


def _on_grid(
    run: Callable[..., Tensor],
    nodes: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    grid: SphereGrid,
    fields: int,
) -> Tensor:
    """Run in slices where memory is slower than the arithmetic; ``fields`` grid fields of one node live at a time."""
    if nodes[0].device.type != "cpu":
        return run(*nodes, *shared)
    row_bytes = fields * grid.points.shape[0] * nodes[0].shape[2] * nodes[0].element_size()
    return in_slices(run, nodes, shared, row_bytes)


def _degree(x: Tensor) -> int:
    if x.ndim != 3 or (isqrt(x.shape[1])) ** 2 != x.shape[1]:
        raise ValueError(f"coefficients must be (nodes, (L+1)^2, channels), got {tuple(x.shape)}")
    return isqrt(x.shape[1]) - 1


@cache
def _grid(lmax: int, degree: int, device: torch.device) -> SphereGrid:
    # One per device: a grid that moved would leave captured graphs with the memory of another tensor.
    return grid_for_degree(lmax, degree).to(device)


@cache
def product_terms(l1: int, l2: int, l3: int, paths: str = EVEN) -> tuple[tuple[int, int, int, float], ...]:
    """The nonzero coefficients of degrees up to l1, l2 and l3, as (i, j, k, value)."""
    terms = []
    for a, b in product(range(l1 + 1), range(l2 + 1)):
        for c in range(abs(a - b), min(a + b, l3) + 1):
            odd = (a + b + c) % 2 == 1
            if paths != ALL and odd != (paths == ODD):
                continue
            block = sqrt(4 * pi) * (surface_bracket_table if odd else gaunt)(a, b, c)
            for i, j, k in np.argwhere(np.abs(block) > 1e-12).tolist():
                terms.append((a * a + i, b * b + j, c * c + k, float(block[i, j, k])))
    return tuple(terms)


@cache
def _contraction(
    degrees: tuple[int, int, int], paths: str, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """A function that writes the product of its first two arguments to the third."""
    l1, l2, l3 = degrees
    terms, n_out = product_terms(l1, l2, l3, paths), (l3 + 1) ** 2
    if not terms:
        return lambda x, y, z: z.zero_()  # type: ignore[arg-type,return-value]
    if device.type == "cpu" and len(terms) > MAX_TERMS:
        return _grid_contraction(l1, l2, l3, paths)
    if device.type == "cpu":
        from ._numba import compile_contraction

        return compile_contraction(terms, n_out)
    from ._cuda import compile_contraction as compile_for_gpu

    contract = compile_for_gpu(terms, ((l1 + 1) ** 2, (l2 + 1) ** 2, n_out))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, (l + 1) ** 2, 40, generator=generator).to(device, dtype) for l in (l1, l2))
    found = x.new_empty(2, n_out, 40)
    contract(x, y, found)
    self_check("gaunt_product", "cupy", found, _reference(x, y, l3, paths))
    return contract


def _grid_contraction(l1: int, l2: int, l3: int, paths: str) -> Callable[[Tensor, Tensor, Tensor], None]:
    points = _grid(max(l1, l2, l3), l1 + l2 + l3, torch.device("cpu")).points.shape[0]

    def contract(x: Tensor, y: Tensor, z: Tensor) -> None:
        rows = max(1, SLICE_BYTES // (3 * points * x.shape[2] * x.element_size()))
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)
            z[part] = _reference(x[part], y[part], l3, paths)

    return contract


def _compute(x: Tensor, y: Tensor, lmax: int, paths: str) -> Tensor:
    out = x.new_empty(x.shape[0], (lmax + 1) ** 2, x.shape[2])
    contract = _contraction((_degree(x), _degree(y), lmax), paths, x.dtype, x.device)
    contract(x.detach().contiguous(), y.detach().contiguous(), out)
    return out


def _autograd(x: Tensor, y: Tensor, lmax: int, paths: str) -> Tensor:
    value: Tensor = below_autograd(product_op, x, y, lmax, paths)
    if not recording(x, y):
        return value

    def to_x(gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return product_op(y, gradient, _degree(x), paths)  # type: ignore[no-any-return]

    def to_y(gradient: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return product_op(gradient, x, _degree(y), paths)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_x, (x,), (y,)), (to_y, (y,), (x,)))
    return result


product_op = define(
    "gaunt_product(Tensor x, Tensor y, int lmax, str paths) -> Tensor",
    fake=lambda x, y, lmax, paths: x.new_empty(x.shape[0], (lmax + 1) ** 2, x.shape[2]),
    compute=_compute,
    autograd=_autograd,
)
