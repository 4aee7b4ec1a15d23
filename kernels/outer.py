"""Edge basis: harmonics times radial functions of every edge, and the two contractions that its derivatives need.

``b[e, k, r] = y[e, k] q[e, r]``. The three operations are closed under differentiation: the gradient of each is made
of the others, so every order of derivative exists, and on the CPU none of them writes an intermediate of size E K R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import choose


def outer(y: Tensor, q: Tensor) -> Tensor:
    """``b[e, k, r] = y[e, k] q[e, r]``.

    Args:
        y: ``(E, K)``, e.g. harmonics.
        q: ``(E, R)``, e.g. radial functions.

    Returns:
        ``(E, K, R)``.

    Raises:
        ValueError: shapes that do not fit.
    """
    if y.ndim != 2 or q.ndim != 2 or y.shape[0] != q.shape[0]:
        raise ValueError(f"outer needs (E, K) and (E, R), got {tuple(y.shape)} and {tuple(q.shape)}")
    if choose(y, "outer") != "numba":
        return y.unsqueeze(-1) * q.unsqueeze(-2)
    result: Tensor = _Outer.apply(y, q)
    return result


def _numpy(*tensors: Tensor) -> list:  # type: ignore[type-arg]
    return [t.detach().contiguous().numpy() for t in tensors]


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, q: Tensor) -> Tensor:
        from . import _numba

        out = y.new_empty(y.shape[0], y.shape[1], q.shape[1])
        _numba.outer(*_numpy(y, q), out.numpy())
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        y, q = ctx.saved_tensors
        return _SumR.apply(gradient, q), _SumK.apply(gradient, y)


class _SumR(torch.autograd.Function):
    """``out[e, k] = sum_r b[e, k, r] q[e, r]``."""

    @staticmethod
    def forward(b: Tensor, q: Tensor) -> Tensor:
        from . import _numba

        out = b.new_empty(b.shape[0], b.shape[1])
        _numba.sum_r(*_numpy(b, q), out.numpy())
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        b, q = ctx.saved_tensors
        return _Outer.apply(gradient, q), _SumK.apply(b, gradient)


class _SumK(torch.autograd.Function):
    """``out[e, r] = sum_k b[e, k, r] y[e, k]``."""

    @staticmethod
    def forward(b: Tensor, y: Tensor) -> Tensor:
        from . import _numba

        out = b.new_empty(b.shape[0], b.shape[2])
        _numba.sum_k(*_numpy(b, y), out.numpy())
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        b, y = ctx.saved_tensors
        return _Outer.apply(y, gradient), _SumR.apply(b, gradient)
