"""Products of steerable features degree by degree: sums over components, and factors for whole degrees.

    dot(x, y)_l = sum_m x_lm y_lm,     scale(x, f)_lm = x_lm f_l,

channel by channel. Each is the gradient of the other, so two loops serve all derivatives, and no product of the size
of the features is held. Scalars have modes of their own, so that gates need no slices: `PLAIN` as the others, `ONES`
as if x_0 were one, `NONE` as if it were zero.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from .backends import choose
from .library import below_autograd, define, recording, with_gradients

PLAIN, ONES, NONE = 0, 1, 2
_BESIDE = {PLAIN: PLAIN, ONES: NONE, NONE: NONE}
"""Mode of the gradient with respect to x of `scale`, and to y of `dot`: scalars that count as constants have none."""


def degree_dot(x: Tensor, y: Tensor) -> Tensor:
    """Sums over components: ``(N, L+1, C)`` from features ``(N, (L+1)^2, C)``.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(x, tuple(y.shape) == tuple(x.shape), y)
    return _dot(x, y, PLAIN)


def degree_squares(x: Tensor) -> Tensor:
    """Scalars, and the squared lengths of higher degrees: ``(N, L+1, C)`` from features ``(N, (L+1)^2, C)``."""
    _check(x, True, x)
    return _dot(x, x, ONES)


def degree_gate(x: Tensor, controls: Tensor) -> Tensor:
    """New scalars ``controls[:, 0]``, and components of degree l >= 1 times ``controls[:, l]``.

    Args:
        x: ``(N, (L+1)^2, C)``; its scalars do not matter.
        controls: ``(N, L+1, C)``.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(x, tuple(controls.shape) == (x.shape[0], isqrt(x.shape[1]), x.shape[2]), controls)
    return _scale(x, controls, ONES)


def _check(x: Tensor, fits: bool, other: Tensor) -> None:
    if x.ndim != 3 or isqrt(x.shape[1]) ** 2 != x.shape[1] or not fits:
        raise ValueError(f"features {tuple(x.shape)} must be (N, (L+1)^2, C), and fit {tuple(other.shape)}")


def _dot(x: Tensor, y: Tensor, mode: int) -> Tensor:
    if choose(x, "degree_products") == "reference":
        sizes = [2 * l + 1 for l in range(isqrt(x.shape[1]))]
        first = {PLAIN: x[:, :1] * y[:, :1], ONES: x[:, :1], NONE: torch.zeros_like(x[:, :1])}[mode]
        rest = (x[:, 1:] * y[:, 1:]).split(sizes[1:], dim=1)
        return torch.cat([first, *(part.sum(1, keepdim=True) for part in rest)], dim=1)
    found: Tensor = dot_op(x, y, mode)
    return found


def _scale(x: Tensor, f: Tensor, mode: int) -> Tensor:
    if choose(x, "degree_products") == "reference":
        first = {PLAIN: x[:, :1] * f[:, :1], ONES: f[:, :1], NONE: torch.zeros_like(f[:, :1])}[mode]
        counts = torch.tensor([2 * l + 1 for l in range(1, f.shape[1])], device=f.device)
        return torch.cat([first, x[:, 1:] * f[:, 1:].repeat_interleave(counts, dim=1)], dim=1)
    found: Tensor = scale_op(x, f, mode)
    return found


def _kernels() -> Any:
    from . import _numba_degrees

    return _numba_degrees


def _dot_autograd(x: Tensor, y: Tensor, mode: int) -> Tensor:
    value: Tensor = below_autograd(dot_op, x, y, mode)
    if not recording(x, y):
        return value
    if x is y and mode == ONES:

        def to_both(cotangent: Tensor, x: Tensor) -> Tensor:
            doubled = torch.cat([cotangent[:, :1], 2 * cotangent[:, 1:]], dim=1)
            return scale_op(x, doubled, ONES)  # type: ignore[no-any-return]

        result: Tensor = with_gradients(value, (to_both, (x,), ()))
        return result

    def to_x(cotangent: Tensor, _x: Tensor, y: Tensor) -> Tensor:
        return scale_op(y, cotangent, mode)  # type: ignore[no-any-return]

    def to_y(cotangent: Tensor, _y: Tensor, x: Tensor) -> Tensor:
        return scale_op(x, cotangent, _BESIDE[mode])  # type: ignore[no-any-return]

    result = with_gradients(value, (to_x, (x,), (y,)), (to_y, (y,), (x,)))
    return result


def _scale_autograd(x: Tensor, f: Tensor, mode: int) -> Tensor:
    value: Tensor = below_autograd(scale_op, x, f, mode)
    if not recording(x, f):
        return value

    def to_x(cotangent: Tensor, _x: Tensor, f: Tensor) -> Tensor:
        return scale_op(cotangent, f, _BESIDE[mode])  # type: ignore[no-any-return]

    def to_f(cotangent: Tensor, _f: Tensor, x: Tensor) -> Tensor:
        return dot_op(cotangent, x, mode)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_x, (x,), (f,)), (to_f, (f,), (x,)))
    return result


dot_op = define(
    "degree_dot(Tensor x, Tensor y, int mode) -> Tensor",
    fake=lambda x, y, mode: x.new_empty(x.shape[0], isqrt(x.shape[1]), x.shape[2]),
    compute=lambda x, y, mode: _kernels().dot(x, y, mode),
    autograd=_dot_autograd,
)
scale_op = define(
    "degree_scale(Tensor x, Tensor f, int mode) -> Tensor",
    fake=lambda x, f, mode: torch.empty_like(x, memory_format=torch.contiguous_format),
    compute=lambda x, f, mode: _kernels().scale(x, f, mode),
    autograd=_scale_autograd,
)
