"""Messages on a graph with a weight for every edge, path and channel, given from outside ('uvu').

All operations are derivatives of one form, linear in each of its four arguments,

    F = sum over edges e = (j -> i) of sum_p w[e, p] sum_abc T^p_abc x[j, a] Y[e, b] z[i, c],

T^p = sqrt(2 l3 + 1) w3j(l1, l2, l3): messages leave z open, their gradients x, Y or w. Nothing of size
edges x components x channels is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt, sqrt
from typing import Any

import torch
from torch import Tensor

from .backends import choose
from .conventions import Path, w3j
from .library import below_autograd, define, recording, with_gradients
from .plan import GraphPlan

Graph = list[Tensor]


def weighted_message(
    x: Tensor, harmonics: Tensor, weights: Tensor, plan: GraphPlan, paths: Sequence[Path], lmax: int
) -> Tensor:
    """Sums over neighbours: ``z[i, l3] = sum_j sum_p w[ij, p] sqrt(2 l3 + 1) w3j x[j, l1] Y[ij, l2]``.

    All paths to a degree are summed. Another selection of paths needs no compilation.

    Args:
        x: ``(N, (L1+1)^2, C)`` source features.
        harmonics: ``(E, (L2+1)^2)``.
        weights: ``(E, P, C)``; ``weights[:, p]`` belongs to ``paths[p]``.
        plan: the graph; where no gradients are recorded, it may hold a part of the targets and their edges.
        paths: the P couplings.
        lmax: largest degree of the result.

    Returns:
        ``(targets, (lmax+1)^2, C)``; degrees that no path reaches are zero.

    Raises:
        ValueError: shapes that do not fit, or a path beyond the degrees of x, harmonics or lmax.

    Source: QHNet (arXiv 2306.04922), node-wise interaction.
    """
    n, edges, channels = plan.n_nodes, plan.source.shape[0], x.shape[-1]
    differentiable = recording(x, harmonics, weights)
    if x.ndim != 3 or (x.shape[0] != n and differentiable) or harmonics.ndim != 2 or harmonics.shape[0] != edges:
        raise ValueError(
            f"a graph of {n} nodes and {edges} edges needs x ({n}, (L+1)^2, C) and harmonics ({edges}, (L+1)^2), got "
            f"{tuple(x.shape)} and {tuple(harmonics.shape)}"
        )
    if weights.shape != (edges, len(paths), channels):
        raise ValueError(f"weights must be {(edges, len(paths), channels)}, one per path, got {tuple(weights.shape)}")
    for p in paths:
        fits = (p.l1 + 1) ** 2 <= x.shape[1] and (p.l2 + 1) ** 2 <= harmonics.shape[1] and p.l3 <= lmax
        if not fits or not abs(p.l1 - p.l2) <= p.l3 <= p.l1 + p.l2:
            raise ValueError(
                f"{p} does not fit x {tuple(x.shape)}, harmonics {tuple(harmonics.shape)} and lmax = {lmax}"
            )
    if choose(x, "weighted_message") == "reference":
        return reference(x, harmonics, weights, plan, paths, lmax)
    flat = [l for p in paths for l in (p.l1, p.l2, p.l3)]
    rows = plan.rows.tensors
    graph = (rows, plan.columns.tensors if differentiable else rows, flat)
    result: Tensor = message_op(x, harmonics, weights, *graph, (lmax + 1) ** 2, False)
    return result


def reference(
    x: Tensor, harmonics: Tensor, weights: Tensor, plan: GraphPlan, paths: Sequence[Path], lmax: int
) -> Tensor:
    """`weighted_message` in plain torch, path by path."""
    sources = x.index_select(0, plan.source).split(list(range(1, 2 * isqrt(x.shape[1]), 2)), dim=1)
    ys = harmonics.split(list(range(1, 2 * isqrt(harmonics.shape[1]), 2)), dim=1)
    empty = x.new_zeros(plan.source.shape[0], 1, x.shape[2])
    blocks = [[empty.expand(-1, 2 * l + 1, -1)] for l in range(lmax + 1)]
    for p, weight in zip(paths, weights.split(1, dim=1), strict=True):
        table = torch.from_numpy(sqrt(2 * p.l3 + 1) * w3j(p.l1, p.l2, p.l3)).to(x)
        matrix = torch.einsum("abc,eb->eca", table, ys[p.l2])
        blocks[p.l3].append(matrix @ (sources[p.l1] * weight))
    flat = torch.cat([sum(parts[1:], parts[0]) for parts in blocks], dim=1)
    return flat.new_zeros(plan.n_nodes, *flat.shape[1:]).index_add(0, plan.target, flat)


def _kernels() -> Any:
    from . import _numba_weighted

    return _numba_weighted


def _gradient(name: str, values: dict[str, Tensor], graph: tuple[Any, ...], size: int) -> Tensor:
    """Derivative of the form with respect to one argument, from the three others; `size`: its components."""
    if name == "w":
        found: Tensor = weights_op(values["z"], values["x"], values["y"], *graph)
    elif name == "y":
        found = harmonics_op(values["z"], values["x"], values["w"], *graph, size)
    else:
        source = values["x" if name == "z" else "z"]
        found = message_op(source, values["y"], values["w"], *graph, size, name == "x")
    return found


def _differentiable(value: Tensor, arguments: dict[str, Tensor], opened: str, graph: tuple[Any, ...]) -> Tensor:
    """Attach the gradients: for every argument, the derivative of the form with the cotangent in the open place."""

    def group(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
        others, size = [other for other in arguments if other != name], arguments[name].shape[1]

        def gradient(cotangent: Tensor, _own: Tensor, *rest: Tensor) -> Tensor:
            values = dict(zip(others, rest, strict=True)) | {opened: cotangent}
            return _gradient(name, values, graph, size)

        return gradient, (arguments[name],), tuple(arguments[other] for other in others)

    result: Tensor = with_gradients(value, *(group(name) for name in arguments))
    return result


def _message_fake(
    a: Tensor, y: Tensor, w: Tensor, rows: Graph, columns: Graph, paths: list[int], size: int, transposed: bool
) -> Tensor:
    return a.new_empty((columns if transposed else rows)[0].shape[0] - 1, size, a.shape[2])


def _message_autograd(
    a: Tensor, y: Tensor, w: Tensor, rows: Graph, columns: Graph, paths: list[int], size: int, transposed: bool
) -> Tensor:
    value: Tensor = below_autograd(message_op, a, y, w, rows, columns, paths, size, transposed)
    if not recording(a, y, w):
        return value
    given, opened = ("z", "x") if transposed else ("x", "z")
    return _differentiable(value, {given: a, "y": y, "w": w}, opened, (rows, columns, paths))


def _weights_autograd(z: Tensor, x: Tensor, y: Tensor, rows: Graph, columns: Graph, paths: list[int]) -> Tensor:
    value: Tensor = below_autograd(weights_op, z, x, y, rows, columns, paths)
    if not recording(z, x, y):
        return value
    return _differentiable(value, {"z": z, "x": x, "y": y}, "w", (rows, columns, paths))


def _harmonics_autograd(
    z: Tensor, x: Tensor, w: Tensor, rows: Graph, columns: Graph, paths: list[int], size: int
) -> Tensor:
    value: Tensor = below_autograd(harmonics_op, z, x, w, rows, columns, paths, size)
    if not recording(z, x, w):
        return value
    return _differentiable(value, {"z": z, "x": x, "w": w}, "y", (rows, columns, paths))


message_op = define(
    "weighted_message(Tensor a, Tensor y, Tensor w, Tensor[] rows, Tensor[] columns, int[] paths, int size, "
    "bool transposed) -> Tensor",
    fake=_message_fake,
    compute=lambda *arguments: _kernels().message(*arguments),
    autograd=_message_autograd,
)
weights_op = define(
    "weighted_message_weights(Tensor z, Tensor x, Tensor y, Tensor[] rows, Tensor[] columns, int[] paths) -> Tensor",
    fake=lambda z, x, y, rows, columns, paths: x.new_empty(y.shape[0], len(paths) // 3, x.shape[2]),
    compute=lambda *arguments: _kernels().weights(*arguments),
    autograd=_weights_autograd,
)
harmonics_op = define(
    "weighted_message_harmonics(Tensor z, Tensor x, Tensor w, Tensor[] rows, Tensor[] columns, int[] paths, int size)"
    " -> Tensor",
    fake=lambda z, x, w, rows, columns, paths, size: x.new_empty(w.shape[0], size),
    compute=lambda *arguments: _kernels().harmonics(*arguments),
    autograd=_harmonics_autograd,
)
