"""GPU kernels of the point-wise network on the sphere: grid values live in registers and shared memory only.

One program takes one head of some nodes; for a tile of grid points it synthesises, runs the network and analyses.
Matrix products of float32 run as three TF32 products on tensor cores ("tf32x3"), accurate to float32 rounding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton import launch, power_of_two
from .backends import self_check
from .grid_reference import fits, reference

PROGRAMS = 4 * 132  # of a node range: several for every multiprocessor of the largest GPUs
POINTS = 32  # of a tile
WARPS = 4


@triton.jit
def _sigmoid(a):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + tl.exp(-a))


@triton.jit
def _tile(pointer, rows, row_stride, n_rows, columns, n_columns):  # type: ignore[no-untyped-def]
    """Part of a row-major matrix, zeros outside."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x, synthesis, analysis, w1, w2, b1, b2, out, n_nodes, n_programs,
    N_POINTS: tl.constexpr, N_BASIS: tl.constexpr, N_IN: tl.constexpr, N_OUT: tl.constexpr, HEADS: tl.constexpr,
    N_CHANNELS: tl.constexpr, N_HIDDEN: tl.constexpr, BIASED: tl.constexpr, POINTS: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out[n] = analysis @ silu(silu(synthesis @ x[n] @ w1 + b1) @ w2 + b2)`` of one head."""
    head = tl.program_id(0) % HEADS
    ki, ko, c, h = tl.arange(0, IN), tl.arange(0, OUT), tl.arange(0, CHANNELS), tl.arange(0, HIDDEN)
    first = _tile(w1, c, N_HIDDEN, N_CHANNELS, h, N_HIDDEN)
    second = _tile(w2, h, N_CHANNELS, N_HIDDEN, c, N_CHANNELS)
    width: tl.constexpr = HEADS * N_CHANNELS
    for row in range((tl.program_id(0) // HEADS).to(tl.int64), n_nodes, n_programs):
        field = _tile(x + row * N_IN * width + head * N_CHANNELS, ki, width, N_IN, c, N_CHANNELS)
        total = tl.full([OUT, CHANNELS], 0.0, tl.float32)
        for start in range(0, N_POINTS, POINTS):
            g = start + tl.arange(0, POINTS)
            values = tl.dot(_tile(synthesis, g, N_BASIS, N_POINTS, ki, N_IN), field, input_precision=PRECISION)
            a = tl.dot(values, first, input_precision=PRECISION)
            if BIASED:
                a += tl.load(b1 + h, mask=h < N_HIDDEN, other=0.0)[None, :]
            b = tl.dot(a * _sigmoid(a), second, input_precision=PRECISION)
            if BIASED:
                b += tl.load(b2 + c, mask=c < N_CHANNELS, other=0.0)[None, :]
            weights = _tile(analysis, ko, N_POINTS, N_OUT, g, N_POINTS)
            total += tl.dot(weights, b * _sigmoid(b), input_precision=PRECISION)
        inside = (ko[:, None] < N_OUT) & (c[None, :] < N_CHANNELS)
        here = out + row * N_OUT * width + head * N_CHANNELS
        tl.store(here + ko[:, None] * width + c[None, :], total, mask=inside)


@triton.jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    x, cotangent, synthesis, analysis, w1, w2, b1, b2, dx, dw1, dw2, db1, db2, n_nodes, n_programs,
    N_POINTS: tl.constexpr, N_BASIS: tl.constexpr, N_IN: tl.constexpr, N_OUT: tl.constexpr, HEADS: tl.constexpr,
    N_CHANNELS: tl.constexpr, N_HIDDEN: tl.constexpr, BIASED: tl.constexpr, POINTS: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the forward kernel, everything recomputed; those of the weights as one part per program."""
    program = tl.program_id(0)
    head = program % HEADS
    ki, ko, c, h = tl.arange(0, IN), tl.arange(0, OUT), tl.arange(0, CHANNELS), tl.arange(0, HIDDEN)
    first = _tile(w1, c, N_HIDDEN, N_CHANNELS, h, N_HIDDEN)
    second = _tile(w2, h, N_CHANNELS, N_HIDDEN, c, N_CHANNELS)
    d_first = tl.full([CHANNELS, HIDDEN], 0.0, tl.float32)
    d_second = tl.full([HIDDEN, CHANNELS], 0.0, tl.float32)
    d_b1 = tl.full([HIDDEN], 0.0, tl.float32)
    d_b2 = tl.full([CHANNELS], 0.0, tl.float32)
    width: tl.constexpr = HEADS * N_CHANNELS
    for row in range((program // HEADS).to(tl.int64), n_nodes, n_programs):
        field = _tile(x + row * N_IN * width + head * N_CHANNELS, ki, width, N_IN, c, N_CHANNELS)
        f = _tile(cotangent + row * N_OUT * width + head * N_CHANNELS, ko, width, N_OUT, c, N_CHANNELS)
        d_field = tl.full([IN, CHANNELS], 0.0, tl.float32)
        for start in range(0, N_POINTS, POINTS):
            g = start + tl.arange(0, POINTS)
            basis = _tile(synthesis, g, N_BASIS, N_POINTS, ki, N_IN)
            values = tl.dot(basis, field, input_precision=PRECISION)
            a = tl.dot(values, first, input_precision=PRECISION)
            if BIASED:
                a += tl.load(b1 + h, mask=h < N_HIDDEN, other=0.0)[None, :]
            sa = _sigmoid(a)
            b = tl.dot(a * sa, second, input_precision=PRECISION)
            if BIASED:
                b += tl.load(b2 + c, mask=c < N_CHANNELS, other=0.0)[None, :]
            sb = _sigmoid(b)
            weights = _tile(analysis, ko, N_POINTS, N_OUT, g, N_POINTS)  # zero beyond the last point
            db = tl.dot(tl.trans(weights), f, input_precision=PRECISION) * sb * (1.0 + b * (1.0 - sb))
            da = tl.dot(db, tl.trans(second), input_precision=PRECISION) * sa * (1.0 + a * (1.0 - sa))
            d_second += tl.dot(tl.trans(a * sa), db, input_precision=PRECISION)
            d_first += tl.dot(tl.trans(values), da, input_precision=PRECISION)
            if BIASED:
                d_b1 += tl.sum(da, axis=0)
                d_b2 += tl.sum(db, axis=0)
            back = tl.dot(da, tl.trans(first), input_precision=PRECISION)
            d_field += tl.dot(tl.trans(basis), back, input_precision=PRECISION)
        inside = (ki[:, None] < N_IN) & (c[None, :] < N_CHANNELS)
        here = dx + row * N_IN * width + head * N_CHANNELS
        tl.store(here + ki[:, None] * width + c[None, :], d_field, mask=inside)
    size: tl.constexpr = N_CHANNELS * N_HIDDEN
    inside = (c[:, None] < N_CHANNELS) & (h[None, :] < N_HIDDEN)
    tl.store(dw1 + program * size + c[:, None] * N_HIDDEN + h[None, :], d_first, mask=inside)
    inside = (h[:, None] < N_HIDDEN) & (c[None, :] < N_CHANNELS)
    tl.store(dw2 + program * size + h[:, None] * N_CHANNELS + c[None, :], d_second, mask=inside)
    if BIASED:
        tl.store(db1 + program * N_HIDDEN + h, d_b1, mask=h < N_HIDDEN)
        tl.store(db2 + program * N_CHANNELS + c, d_b2, mask=c < N_CHANNELS)


def forward(x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int) -> Tensor:
    """Coefficients ``(N, N_OUT, C)``.

    Args:
        x: ``(N, N_IN, C)``.
        synthesis, analysis: ``(G, >= N_IN)`` and ``(N_OUT, G)``.
        parameters: ``(C/heads, H)``, ``(H, C/heads)``, and both biases or none.
        heads: channel groups that share the parameters.
    """
    if x.is_cuda:
        verify(x.shape[1], analysis.shape, parameters[0].shape, heads, len(parameters) == 4, x.device)
    return _forward(x, synthesis, analysis, parameters, heads)


def gradient(
    x: Tensor, cotangent: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int
) -> list[Tensor]:
    """Gradients with respect to x and the parameters; arguments as of `forward`."""
    if x.is_cuda:
        verify(x.shape[1], analysis.shape, parameters[0].shape, heads, len(parameters) == 4, x.device)
    return _gradient(x, cotangent, synthesis, analysis, parameters, heads)


@cache
def verify(
    n_in: int, analysis: torch.Size, weights: torch.Size, heads: int, biased: bool, device: torch.device
) -> None:
    """Compare both kernels with the reference and its finite differences, once.

    Raises:
        RuntimeError: they disagree.
    """
    generator, (per_head, hidden) = torch.Generator().manual_seed(0), weights
    shapes = [
        (3, n_in, heads * per_head),
        (analysis[1], n_in),
        analysis,
        (per_head, hidden),
        (hidden, per_head),
    ]
    shapes += [(hidden,), (per_head,)] if biased else []
    # Sums of n terms of size 1/sqrt(n) keep the network where it bends.
    exact = [torch.randn(s, generator=generator, dtype=torch.float64) / s[-1] ** 0.5 for s in shapes]
    x, s, a, *p = (t.to(device, torch.float32) for t in exact)
    plain = reference(exact[0], exact[1], exact[2], exact[3:], heads)
    self_check("grid_mlp", "triton", _forward(x, s, a, p, heads).double().cpu(), plain, 1e-4)
    if not fits(weights, gradient=True):
        return
    moved = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (exact[0], *exact[3:])]
    g, step = torch.randn(plain.shape, generator=generator, dtype=torch.float64), 1e-5

    def ahead(k: int) -> Tensor:
        x, *p = (t + k * step * m for t, m in zip((exact[0], *exact[3:]), moved, strict=True))
        return (reference(x, exact[1], exact[2], p, heads) * g).sum().reshape(1)

    found = _gradient(x, g.to(device, torch.float32), s, a, p, heads)
    terms = [(f.double().cpu() * m).sum() for f, m in zip(found, moved, strict=True)]
    self_check(
        "grid_mlp (gradient)",
        "triton",
        torch.stack(terms).sum().reshape(1),
        (ahead(1) - ahead(-1)) / (2 * step),
        1e-3,
    )


def _forward(x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int) -> Tensor:
    out = x.new_empty(x.shape[0], analysis.shape[0], x.shape[2])
    nodes = min(x.shape[0], PROGRAMS)
    matrices = [*parameters, *parameters[: 4 - len(parameters)]]
    arguments = (*_ready(x, synthesis, analysis, *matrices), out, x.shape[0], nodes)
    launch(forward_kernel, nodes * heads, arguments, **_options(x, synthesis, analysis, parameters, heads))
    return out


def _gradient(
    x: Tensor, cotangent: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int
) -> list[Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    nodes = min(x.shape[0], PROGRAMS)
    parts = [p.new_empty(nodes * heads, *p.shape) for p in parameters]
    matrices = [*parameters, *parameters[: 4 - len(parameters)]]
    inputs = _ready(x, cotangent, synthesis, analysis, *matrices)
    arguments = (*inputs, dx, *parts, *parts[: 4 - len(parts)], x.shape[0], nodes)
    launch(gradient_kernel, nodes * heads, arguments, **_options(x, synthesis, analysis, parameters, heads))
    return [dx, *(p.sum(0) for p in parts)]


def constants(x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int) -> dict[str, Any]:
    """Compile-time sizes of both kernels."""
    per_head, hidden = parameters[0].shape
    sizes = {"IN": x.shape[1], "OUT": analysis.shape[0], "CHANNELS": per_head, "HIDDEN": hidden}
    counts = {f"N_{name}": n for name, n in sizes.items()}
    padded = {name: _padded(n) for name, n in sizes.items()}
    fixed = {"BIASED": len(parameters) == 4, "POINTS": POINTS, "PRECISION": "tf32x3"}
    return {
        "N_POINTS": analysis.shape[1], "N_BASIS": synthesis.shape[1], **counts, "HEADS": heads, **fixed, **padded
    }  # fmt: skip


def _options(*arguments: Any) -> dict[str, Any]:
    # Prefetching the small matrices of the next tile would cost more registers and shared memory than it hides.
    return {**constants(*arguments), "num_warps": WARPS, "num_stages": 1}


def _padded(n: int) -> int:
    """Tensor cores take at least 16 rows and columns."""
    return max(16, power_of_two(n))


def _ready(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in tensors)
