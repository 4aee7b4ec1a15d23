"""The operators behind `species_density`: the form S(d, q) = sum over edges of d[i, k, (s r)] Y[k] g[r], s the
neighbour's species, with d open (`density`), with q open (`density_edge`), and changed along dq (`density_tangent`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .library import below_autograd, define, recording, with_gradients
from .message_ops import mixed


def _kernels() -> Any:
    from . import _numba_message

    return _numba_message


def _density_fake(q: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int) -> Tensor:
    return q.new_empty(row_ptr.shape[0] - 1, n_harmonics, n_species * (q.shape[1] - n_harmonics))


def _density_cpu(q: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int) -> Tensor:
    out = _density_fake(q, neighbours, row_ptr, n_species, n_harmonics)
    return _kernels().density(q, q, neighbours, row_ptr, out, add=False)  # type: ignore[no-any-return]


def _density_autograd(q: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int) -> Tensor:
    graph = (neighbours, row_ptr, n_species, n_harmonics)
    value: Tensor = below_autograd(density_op, q, *graph)
    if not recording(q):
        return value

    def to_q(cotangent: Tensor, q: Tensor) -> Tensor:
        return density_edge(cotangent, q, *graph)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_q, (q,), ()))
    return result


density_op = define(
    "density(Tensor q, Tensor neighbours, Tensor row_ptr, int n_species, int n_harmonics) -> Tensor",
    fake=_density_fake,
    compute=_density_cpu,
    autograd=_density_autograd,
)


def _tangent_fake(
    q: Tensor, dq: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int
) -> Tensor:
    return _density_fake(q, neighbours, row_ptr, n_species, n_harmonics)


def _tangent_cpu(
    q: Tensor, dq: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int
) -> Tensor:
    out = _density_fake(q, neighbours, row_ptr, n_species, n_harmonics)
    _kernels().density(dq, q, neighbours, row_ptr, out, add=False)
    return _kernels().density(q, dq, neighbours, row_ptr, out, add=True)  # type: ignore[no-any-return]


def _tangent_autograd(
    q: Tensor, dq: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int
) -> Tensor:
    graph = (neighbours, row_ptr, n_species, n_harmonics)
    if not recording(q, dq):
        value: Tensor = below_autograd(density_tangent, q, dq, *graph)
        return value
    first, second = mixed(q, dq, n_harmonics)
    a: Tensor = density_op(first, *graph)
    b: Tensor = density_op(second, *graph)
    return a + b


density_tangent = define(
    "density_tangent(Tensor q, Tensor dq, Tensor neighbours, Tensor row_ptr, int n_species, int n_harmonics) -> Tensor",
    fake=_tangent_fake,
    compute=_tangent_cpu,
    autograd=_tangent_autograd,
)


def _edge_fake(d: Tensor, q: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _edge_cpu(d: Tensor, q: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int) -> Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return _kernels().density_edge(d, q, neighbours, row_ptr, out)  # type: ignore[no-any-return]


def _edge_autograd(
    d: Tensor, q: Tensor, neighbours: Tensor, row_ptr: Tensor, n_species: int, n_harmonics: int
) -> Tensor:
    graph = (neighbours, row_ptr, n_species, n_harmonics)
    value: Tensor = below_autograd(density_edge, d, q, *graph)
    if not recording(d, q):
        return value

    def to_d(dq: Tensor, d: Tensor, q: Tensor) -> Tensor:
        return density_tangent(q, dq, *graph)  # type: ignore[no-any-return]

    def to_q(dq: Tensor, q: Tensor, d: Tensor) -> Tensor:
        first, second = mixed(q, dq, n_harmonics)
        radial: Tensor = density_edge(d, first, *graph)
        harmonics: Tensor = density_edge(d, second, *graph)
        return torch.cat([harmonics[:, :n_harmonics], radial[:, n_harmonics:]], dim=1)

    result: Tensor = with_gradients(value, (to_d, (d,), (q,)), (to_q, (q,), (d,)))
    return result


density_edge = define(
    "density_edge(Tensor d, Tensor q, Tensor neighbours, Tensor row_ptr, int n_species, int n_harmonics) -> Tensor",
    fake=_edge_fake,
    compute=_edge_cpu,
    autograd=_edge_autograd,
)
