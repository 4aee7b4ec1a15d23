"""Linear maps of flat steerable features: one matrix per degree, the same for all components, nothing copied.

``z[n, (l m), d] = sum_c x[n, (l m), c] W_l[c, d]`` is linear in x and in W, so its derivatives are itself with the
matrices transposed, and the outer product that gives the matrices' gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .backends import choose
from .irreps import Channels, join, split, width
from .library import below_autograd, define, recording, with_gradients


def degree_linear(x: Tensor, weights: Tensor, inputs: Channels, outputs: Channels) -> Tensor:
    """Map the channels of every degree.

    Args:
        x: ``(N, width(inputs))`` flat features.
        weights: the matrices ``(C_l, D_l)`` one after the other, flattened.
        inputs: channels C_l.
        outputs: channels D_l, as many degrees as inputs at most.

    Returns:
        ``(N, width(outputs))``.

    Raises:
        ValueError: shapes that do not fit.
    """
    n = sum(c * d for c, d in zip(inputs, outputs, strict=False))
    if x.shape[-1] != width(inputs) or weights.shape != (n,) or len(outputs) > len(inputs):
        raise ValueError(
            f"degree_linear from {inputs} to {outputs} channels needs x (N, {width(inputs)}) and {n} weights, "
            f"got {tuple(x.shape)} and {tuple(weights.shape)}"
        )
    # Under autocast the matrix products of plain torch choose their precision.
    if torch.is_autocast_enabled(x.device.type) or choose(x, "degree_linear") == "reference":
        matrices = [
            w.view(c, d)
            for w, c, d in zip(
                weights.split([c * d for c, d in zip(inputs, outputs, strict=False)]),
                inputs,
                outputs,
                strict=False,
            )
        ]
        return join([b @ w for b, w in zip(split(x, inputs), matrices, strict=False)])
    result: Tensor = linear_op(x, weights, inputs, outputs, False)
    return result


def _degrees(inputs: Sequence[int], outputs: Sequence[int]) -> list[tuple[int, int, int, slice, int, int]]:
    """Components, first columns in x and z, slice and shape of the matrix of every degree."""
    return _degrees_of(tuple(inputs), tuple(outputs))


@lru_cache
def _degrees_of(inputs: Channels, outputs: Channels) -> list[tuple[int, int, int, slice, int, int]]:
    a = b = w = 0
    found = []
    for l, (c, d) in enumerate(zip(inputs, outputs, strict=False)):
        n = 2 * l + 1
        found.append((n, a, b, slice(w, w + c * d), c, d))
        a, b, w = a + n * c, b + n * d, w + c * d
    return found


def _fake(x: Tensor, w: Tensor, inputs: list[int], outputs: list[int], transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], width(tuple(inputs if transposed else outputs)))


def _compute(x: Tensor, w: Tensor, inputs: list[int], outputs: list[int], transposed: bool) -> Tensor:
    out = _fake(x, w, inputs, outputs, transposed)
    if transposed and len(inputs) > len(outputs):
        out.zero_()
    x = x.contiguous()
    for n, a, b, s, c, d in _degrees(inputs, outputs):
        matrix = w[s].view(c, d)
        if transposed:
            _map(x, out, matrix.T, n, b, a)
        else:
            _map(x, out, matrix, n, a, b)
    return out


def _map(x: Tensor, out: Tensor, matrix: Tensor, n: int, a: int, b: int) -> None:
    """One degree of n components, from column a of contiguous x to column b of out, in one product without copies."""
    c, d = matrix.shape
    if n == 1:
        torch.mm(x[:, a : a + c], matrix, out=out[:, b : b + d])
        return
    shape, start = (n, x.shape[0]), x.storage_offset()
    rows = x.as_strided((*shape, c), (c, x.stride(0), 1), start + a)
    torch.bmm(rows, matrix.expand(n, c, d), out=out.as_strided((*shape, d), (d, out.stride(0), 1), b))


def _autograd(x: Tensor, w: Tensor, inputs: list[int], outputs: list[int], transposed: bool) -> Tensor:
    value: Tensor = below_autograd(linear_op, x, w, inputs, outputs, transposed)
    if not recording(x, w):
        return value

    def to_x(cotangent: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return linear_op(cotangent, w, inputs, outputs, not transposed)  # type: ignore[no-any-return]

    def to_w(cotangent: Tensor, w: Tensor, x: Tensor) -> Tensor:
        ends = (cotangent, x) if transposed else (x, cotangent)
        return linear_weight(*ends, inputs, outputs)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_x, (x,), (w,)), (to_w, (w,), (x,)))
    return result


linear_op = define(
    "degree_linear(Tensor x, Tensor w, int[] inputs, int[] outputs, bool transposed) -> Tensor",
    fake=_fake,
    compute=_compute,
    autograd=_autograd,
)


def _weight_fake(x: Tensor, z: Tensor, inputs: list[int], outputs: list[int]) -> Tensor:
    return x.new_empty(sum(c * d for c, d in zip(inputs, outputs, strict=False)))


def _weight_compute(x: Tensor, z: Tensor, inputs: list[int], outputs: list[int]) -> Tensor:
    out = torch.zeros_like(_weight_fake(x, z, inputs, outputs))
    for n, a, b, s, c, d in _degrees(inputs, outputs):
        for m in range(n):
            left, right = x[:, a + m * c : a + (m + 1) * c], z[:, b + m * d : b + (m + 1) * d]
            out[s].view(c, d).addmm_(left.T, right)
    return out


def _weight_autograd(x: Tensor, z: Tensor, inputs: list[int], outputs: list[int]) -> Tensor:
    value: Tensor = below_autograd(linear_weight, x, z, inputs, outputs)
    if not recording(x, z):
        return value

    def to_x(dw: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return linear_op(z, dw, inputs, outputs, True)  # type: ignore[no-any-return]

    def to_z(dw: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return linear_op(x, dw, inputs, outputs, False)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_x, (x,), (z,)), (to_z, (z,), (x,)))
    return result


linear_weight = define(
    "degree_linear_weight(Tensor x, Tensor z, int[] inputs, int[] outputs) -> Tensor",
    fake=_weight_fake,
    compute=_weight_compute,
    autograd=_weight_autograd,
)
