"""Operators behind `grid_mlp` on a GPU: the fused network and its fused gradient.

The gradient recomputes the network. Higher derivatives differentiate the network in plain torch, some nodes at a
time, so that the grid of all nodes is in memory in no order of derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .grid_reference import fits, reference
from .library import below_autograd, define, recording, with_gradients
from .recompute import Sliced, vector_jacobian

SLICE_BYTES = 1 << 28  # of intermediates, where plain torch differentiates


def _fake(x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int) -> Tensor:
    return x.new_empty(x.shape[0], analysis.shape[0], x.shape[2])


def _compute(x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int) -> Tensor:
    from . import _triton_grid

    return _triton_grid.forward(x, synthesis, analysis, parameters, heads)


def _autograd(x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int) -> Tensor:
    value: Tensor = below_autograd(grid_op, x, synthesis, analysis, parameters, heads)
    if not recording(x, *parameters):
        return value

    def to_all(cotangent: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return _Gradient.apply(synthesis, analysis, heads, cotangent, x, *parameters)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_all, (x, *parameters), ()))
    return result


grid_op = define(
    "grid_mlp(Tensor x, Tensor synthesis, Tensor analysis, Tensor[] parameters, int heads) -> Tensor",
    fake=_fake,
    compute=_compute,
    autograd=_autograd,
)


def _gradient_fake(
    cotangent: Tensor, x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int
) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *parameters)]


def _gradient_compute(
    cotangent: Tensor, x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int
) -> list[Tensor]:
    from . import _triton_grid

    return _triton_grid.gradient(x, cotangent, synthesis, analysis, parameters, heads)


gradient_op = define(
    "grid_mlp_gradient(Tensor cotangent, Tensor x, Tensor synthesis, Tensor analysis, Tensor[] parameters, "
    "int heads) -> Tensor[]",
    fake=_gradient_fake,
    compute=_gradient_compute,
)


class _Gradient(torch.autograd.Function):
    """Gradients with respect to x and the parameters; its own backward is plain torch, in slices."""

    @staticmethod
    def forward(
        ctx: Any,
        synthesis: Tensor,
        analysis: Tensor,
        heads: int,
        cotangent: Tensor,
        x: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.heads = heads
        ctx.save_for_backward(synthesis, analysis, cotangent, x, *parameters)
        if fits(parameters[0].shape, gradient=True):
            return tuple(gradient_op(cotangent, x, synthesis, analysis, list(parameters), heads))
        return _plain_gradient(synthesis, analysis, heads, cotangent, x, *parameters)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        synthesis, analysis, *inputs = ctx.saved_tensors
        heads = ctx.heads

        def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
            return _plain_gradient(synthesis, analysis, heads, *inputs)

        found = vector_jacobian(gradient, tuple(inputs), cotangents, list(range(len(inputs))))
        return (None, None, None, *found)


def _plain_gradient(
    synthesis: Tensor, analysis: Tensor, heads: int, cotangent: Tensor, x: Tensor, *parameters: Tensor
) -> tuple[Tensor, ...]:
    """The gradients in plain torch, some nodes at a time."""
    values = synthesis.shape[0] * (2 * x.shape[2] + heads * parameters[0].shape[1])
    rows = max(1, SLICE_BYTES // (values * x.element_size()))

    def run(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return (reference(x, synthesis, analysis, list(parameters), heads),)

    def of_slice(cotangent: Tensor, *primals: Tensor) -> tuple[Tensor, ...]:
        return vector_jacobian(run, primals, (cotangent,), list(range(len(primals))))

    return Sliced.apply(of_slice, 2, 1, rows, cotangent, x, *parameters)  # type: ignore[no-any-return]
