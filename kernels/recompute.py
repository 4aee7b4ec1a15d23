"""Functions of many nodes in slices: intermediates live for one slice at a time, in every order of derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SLICE_BYTES = 4 << 20
"""Intermediates of one slice: they should stay near the caches; larger slices spread the calls over more rows."""

Outputs = tuple[Tensor, ...]


def in_slices(
    function: Callable[..., Tensor], nodes: tuple[Tensor, ...], shared: tuple[Tensor, ...], row_bytes: int
) -> Tensor:
    """``function(*nodes, *shared)``, evaluated for a few nodes at a time.

    Backward recomputes each slice instead of keeping its intermediates; the gradient is itself evaluated in slices,
    so memory does not grow with the intermediates in double backward either.

    Args:
        function: row n of its result depends on row n of ``nodes`` only; made of torch operations.
        nodes: tensors with the same number of rows.
        shared: tensors that every row depends on, e.g. weights.
        row_bytes: size of the intermediates of one row.
    """
    rows = max(1, SLICE_BYTES // max(row_bytes, 1))
    n = nodes[0].shape[0]
    # A compiler decides by itself what to keep; slices of a number of rows that it leaves free cannot be recorded.
    if torch.compiler.is_compiling() or not isinstance(n, int) or n <= 1:
        return function(*nodes, *shared)
    (out,) = Sliced.apply(lambda *a: (function(*a),), len(nodes), 1, rows, *nodes, *shared)
    return out  # type: ignore[no-any-return]


class Sliced(torch.autograd.Function):
    """``function(*nodes, *shared)`` returns first outputs per node, then outputs to be summed over slices."""

    @staticmethod
    def forward(function: Callable[..., Outputs], n_nodes: int, n_rowwise: int, rows: int, *tensors: Tensor) -> Outputs:
        nodes, shared = tensors[:n_nodes], tensors[n_nodes:]
        n = nodes[0].shape[0]
        out: list[Tensor] = []
        for start in range(0, max(n, 1), rows):
            stop = min(start + rows, n)
            parts = function(*(t[start:stop] for t in nodes), *shared)
            if not out:
                out = [p.new_empty(n, *p.shape[1:]) for p in parts[:n_rowwise]]
                out += [torch.zeros_like(p) for p in parts[n_rowwise:]]
            for k, part in enumerate(parts):
                if k < n_rowwise:
                    out[k][start:stop] = part
                else:
                    out[k] += part
        return tuple(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function, ctx.n_nodes, ctx.n_rowwise, ctx.rows = inputs[:4]
        ctx.save_for_backward(*inputs[4:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        wanted = ctx.needs_input_grad[4:]
        if not any(wanted):
            return (None,) * len(ctx.needs_input_grad)
        n, split = ctx.n_nodes, ctx.n_rowwise
        tensors, function = ctx.saved_tensors, ctx.function
        # Inputs of the gradient: rows and their cotangents first, then what all rows share.
        rowwise = (*tensors[:n], *cotangents[:split])
        common = (*tensors[n:], *cotangents[split:])
        where = [k for k, w in enumerate(wanted) if w]

        def gradient(*inputs: Tensor) -> Outputs:
            x, g = inputs[:n], inputs[n : n + split]
            rest = inputs[n + split :]
            s, h = rest[: len(tensors) - n], rest[len(tensors) - n :]
            return vector_jacobian(function, (*x, *s), (*g, *h), where)

        found = iter(Sliced.apply(gradient, len(rowwise), sum(wanted[:n]), ctx.rows, *rowwise, *common))
        return (None, None, None, None, *(next(found) if w else None for w in wanted))


def vector_jacobian(
    function: Callable[..., Outputs], inputs: Outputs, cotangents: Outputs, where: list[int]
) -> Outputs:
    """Gradients of ``sum(function(*inputs) * cotangents)`` with respect to the inputs at ``where``."""
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        # Where nobody records, leave the caller's graph; where somebody does, the result must stay connected to it.
        primals = [
            t if recording and t.requires_grad else t.detach().requires_grad_(k in where) for k, t in enumerate(inputs)
        ]
        outputs = function(*primals)
        return torch.autograd.grad(
            outputs,
            [primals[k] for k in where],
            cotangents,
            create_graph=recording,
            materialize_grads=True,
        )
