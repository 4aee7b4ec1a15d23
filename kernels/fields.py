"""Products of fields on the sphere that a layer mixes with: u v and u v w of three groups of channels, fused.

All derivatives are products of the same kind, so values, gradient, tangent and second derivative are four short
programs of products that run node by node, with every intermediate in the cache.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from .backends import choose
from .gaunt import gaunt_product
from .library import below_autograd, define, recording, with_gradients


def field_products(x: Tensor, lmax_out: int) -> Tensor:
    """Gaunt products ``u v`` and ``u v w`` of the fields ``u | v | w`` side by side in x, channel by channel.

    Args:
        x: ``(N, (L+1)^2, 3 C)`` coefficients.
        lmax_out: largest degree of the results, at most L.

    Returns:
        ``(N, (lmax_out+1)^2, 2 C)``: ``u v | u v w``.

    Raises:
        ValueError: shapes that do not fit.

    Source: Gaunt tensor products (arXiv 2401.10216), many-body products.
    """
    if x.ndim != 3 or isqrt(x.shape[1]) ** 2 != x.shape[1] or x.shape[2] % 3:
        raise ValueError(f"field_products needs x (nodes, (L+1)^2, 3 C), got {tuple(x.shape)}")
    if not 0 <= lmax_out < isqrt(x.shape[1]):
        raise ValueError(f"lmax_out = {lmax_out} is not within 0..{isqrt(x.shape[1]) - 1}, the degrees of x")
    if choose(x, "field_products") == "reference":
        return composite(x, lmax_out)
    result: Tensor = products_op(x, lmax_out)
    return result


def composite(x: Tensor, lmax_out: int) -> Tensor:
    """`field_products` made of two Gaunt products."""
    u, v, w = x.split(x.shape[2] // 3, dim=-1)
    # Higher degrees of u v cannot reach the wanted ones through w, whose degrees end at L.
    uv = gaunt_product(u, v, isqrt(x.shape[1]) - 1 + lmax_out)
    uvw = gaunt_product(uv, w, lmax_out)
    return torch.cat([uv[:, : uvw.shape[1]], uvw], dim=-1)


def _kernels() -> Any:
    from . import _numba_fields

    return _numba_fields


def _value_shape(x: Tensor, lmax_out: int) -> Tensor:
    return x.new_empty(x.shape[0], (lmax_out + 1) ** 2, 2 * (x.shape[2] // 3))


def _like_x(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _products_autograd(x: Tensor, lmax_out: int) -> Tensor:
    value: Tensor = below_autograd(products_op, x, lmax_out)
    if not recording(x):
        return value

    def to_x(y: Tensor, x: Tensor) -> Tensor:
        return products_gradient(x, y)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_x, (x,), ()))
    return result


products_op = define(
    "field_products(Tensor x, int lmax_out) -> Tensor",
    fake=_value_shape,
    compute=lambda x, lmax_out: _kernels().run("value", _value_shape(x, lmax_out), x),
    autograd=_products_autograd,
)


def _gradient_autograd(x: Tensor, y: Tensor) -> Tensor:
    value: Tensor = below_autograd(products_gradient, x, y)
    if not recording(x, y):
        return value

    def to_x(dx: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return products_second(x, dx, y)  # type: ignore[no-any-return]

    def to_y(dx: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return products_tangent(x, dx, isqrt(y.shape[1]) - 1)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_x, (x,), (y,)), (to_y, (y,), (x,)))
    return result


products_gradient = define(
    "field_products_gradient(Tensor x, Tensor y) -> Tensor",
    fake=_like_x,
    compute=lambda x, y: _kernels().run("gradient", _like_x(x), x, y),
    autograd=_gradient_autograd,
)


def _tangent_autograd(x: Tensor, dx: Tensor, lmax_out: int) -> Tensor:
    value: Tensor = below_autograd(products_tangent, x, dx, lmax_out)
    if not recording(x, dx):
        return value

    def to_x(y: Tensor, x: Tensor, dx: Tensor) -> Tensor:
        return products_second(x, dx, y)  # type: ignore[no-any-return]

    def to_dx(y: Tensor, dx: Tensor, x: Tensor) -> Tensor:
        return products_gradient(x, y)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_x, (x,), (dx,)), (to_dx, (dx,), (x,)))
    return result


products_tangent = define(
    "field_products_tangent(Tensor x, Tensor dx, int lmax_out) -> Tensor",
    fake=lambda x, dx, lmax_out: _value_shape(x, lmax_out),
    compute=lambda x, dx, lmax_out: _kernels().run("tangent", _value_shape(x, lmax_out), x, dx),
    autograd=_tangent_autograd,
)


def _second_autograd(x: Tensor, dx: Tensor, y: Tensor) -> Tensor:
    """Third and higher derivatives go through the composite of Gaunt products, which has them all."""
    if not recording(x, dx, y):
        value: Tensor = below_autograd(products_second, x, dx, y)
        return value
    u, v, w = x.split(x.shape[2] // 3, dim=-1)
    du, dv, dw = dx.split(x.shape[2] // 3, dim=-1)
    a, b = y.split(y.shape[2] // 2, dim=-1)
    low, high = isqrt(y.shape[1]) - 1, isqrt(x.shape[1]) - 1
    middle = low + high

    def times(f: Tensor, g: Tensor, lmax: int) -> Tensor:
        return gaunt_product(f, g, lmax)

    t = torch.nn.functional.pad(a, (0, 0, 0, (middle + 1) ** 2 - a.shape[1])) + times(b, w, middle)
    dt = times(b, dw, middle)
    to_u = times(t, dv, high) + times(dt, v, high)
    to_v = times(t, du, high) + times(dt, u, high)
    to_w = times(times(du, v, middle) + times(u, dv, middle), b, high)
    return torch.cat([to_u, to_v, to_w], dim=-1)


products_second = define(
    "field_products_second(Tensor x, Tensor dx, Tensor y) -> Tensor",
    fake=_like_x,
    compute=lambda x, dx, y: _kernels().run("second", _like_x(x), x, dx, y),
    autograd=_second_autograd,
)
