"""Loops of `degrees` on the CPU."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numba
import torch
from torch import Tensor

from ._numba import CHUNKS, share_threads


def dot(x: Tensor, y: Tensor, mode: int) -> Tensor:
    """Sums over components, see `degrees`."""
    out = x.new_empty(x.shape[0], isqrt(x.shape[1]), x.shape[2])
    _run(_dot_rows, _dot_parts, (x, y, out), mode)
    return out


def scale(x: Tensor, f: Tensor, mode: int) -> Tensor:
    """Factors for degrees, see `degrees`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(_scale_rows, _scale_parts, (x, f, out), mode)
    return out


def _run(rows: Any, parts: Any, tensors: tuple[Tensor, ...], mode: int) -> None:
    """All rows on one thread, or in parts shared among threads."""
    arrays = tuple(t.detach().contiguous().numpy() for t in tensors)
    threads = share_threads()
    if threads > 1:
        parts(arrays, mode, CHUNKS * threads)
    else:
        rows(arrays, mode, 0, tensors[0].shape[0])


@numba.njit(fastmath=True, cache=True)
def _dot_rows(arrays: Any, mode: Any, start: Any, stop: Any) -> None:
    x, y, out = arrays
    channels = x.shape[2]
    for n in range(start, stop):
        for c in range(channels):
            if mode == 0:
                out[n, 0, c] = x[n, 0, c] * y[n, 0, c]
            elif mode == 1:
                out[n, 0, c] = x[n, 0, c]
            else:
                out[n, 0, c] = 0.0
        for l in range(1, out.shape[1]):
            first = l * l
            for c in range(channels):
                out[n, l, c] = x[n, first, c] * y[n, first, c]
            for k in range(first + 1, first + 2 * l + 1):
                for c in range(channels):
                    out[n, l, c] += x[n, k, c] * y[n, k, c]


@numba.njit(fastmath=True, cache=True)
def _scale_rows(arrays: Any, mode: Any, start: Any, stop: Any) -> None:
    x, f, out = arrays
    channels = x.shape[2]
    for n in range(start, stop):
        for c in range(channels):
            if mode == 0:
                out[n, 0, c] = x[n, 0, c] * f[n, 0, c]
            elif mode == 1:
                out[n, 0, c] = f[n, 0, c]
            else:
                out[n, 0, c] = 0.0
        for l in range(1, f.shape[1]):
            for k in range(l * l, l * l + 2 * l + 1):
                for c in range(channels):
                    out[n, k, c] = x[n, k, c] * f[n, l, c]


@numba.njit(cache=True, parallel=True)
def _dot_parts(arrays: Any, mode: Any, parts: Any) -> None:
    n = arrays[0].shape[0]
    for part in numba.prange(parts):
        _dot_rows(arrays, mode, part * n // parts, (part + 1) * n // parts)


@numba.njit(cache=True, parallel=True)
def _scale_parts(arrays: Any, mode: Any, parts: Any) -> None:
    n = arrays[0].shape[0]
    for part in numba.prange(parts):
        _scale_rows(arrays, mode, part * n // parts, (part + 1) * n // parts)
