"""Messages with a weight per edge on the CPU: one compiled loop for every set of paths, driven by tables.

The harmonics of an edge and the coefficients of a path make a small matrix between components, which then acts on
channels, one stretch of vector instructions after the other.
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ._numba import CHUNKS, share_threads
from .conventions import w3j

BLOCK = 64  # channels
Graph = list[Tensor]


def message(
    a: Tensor, y: Tensor, w: Tensor, rows: Graph, columns: Graph, paths: list[int], size: int, transposed: bool
) -> Tensor:
    """The form with z open, or with x open when transposed, see `weighted`."""
    pointers, order, sender = columns if transposed else rows
    out = a.new_empty(pointers.shape[0] - 1, size, a.shape[2])
    _run(_message_rows, _message_parts, (a, y, w, out, pointers, order, sender), paths, transposed)
    return out


def weights(z: Tensor, x: Tensor, y: Tensor, rows: Graph, columns: Graph, paths: list[int]) -> Tensor:
    """The form with the weights open."""
    out = x.new_empty(y.shape[0], len(paths) // 3, x.shape[2])
    _run(_weights_rows, _weights_parts, (x, y, z, out, *rows), paths, False)
    return out


def harmonics(z: Tensor, x: Tensor, w: Tensor, rows: Graph, columns: Graph, paths: list[int], size: int) -> Tensor:
    """The form with the harmonics open."""
    out = x.new_zeros(w.shape[0], size)
    _run(_harmonics_rows, _harmonics_parts, (x, w, z, out, *rows), paths, False)
    return out


def _run(rows: Any, parts: Any, tensors: tuple[Tensor, ...], paths: list[int], transposed: bool) -> None:
    """All receivers on one thread, or in parts shared among threads."""
    arrays = tuple(t.detach().contiguous().numpy() for t in tensors)
    tables = _tables(tuple(paths), transposed, tensors[0].dtype)
    threads = share_threads()
    if threads > 1:
        parts(arrays, tables, CHUNKS * threads)
    else:
        rows(arrays, tables, 0, arrays[4].shape[0] - 1)


@lru_cache(maxsize=64)
def _tables(paths: tuple[int, ...], transposed: bool, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    """Per path: rows of what is read and written and where its matrix starts; per coefficient: where it acts.

    Matrices lie one after the other, ``[written component, read component]``, the paths to a degree together.
    """
    meta, places, columns, values, start = [], [], [], [], 0
    triples = [paths[k : k + 3] for k in range(0, len(paths), 3)]
    read, written = (2, 0) if transposed else (0, 2)
    for p in sorted(range(len(triples)), key=lambda p: (triples[p][written], triples[p][read])):
        la, l2, lc = triples[p][read], triples[p][1], triples[p][written]
        table = sqrt(2 * triples[p][2] + 1) * w3j(*triples[p])
        table = table if transposed else table.transpose(2, 1, 0)  # [written, harmonic, read]
        for c, b, a in np.argwhere(np.abs(table) > 1e-12).tolist():
            places.append(start + c * (2 * la + 1) + a)
            columns.append(l2 * l2 + b)
            values.append(table[c, b, a])
        meta.append((la * la, 2 * la + 1, lc * lc, 2 * lc + 1, start, p))
        start += (2 * la + 1) * (2 * lc + 1)
    number = np.float32 if dtype == torch.float32 else np.float64
    return (
        np.array(meta, dtype=np.int64).reshape(-1, 6),
        np.array(places, dtype=np.int64),
        np.array(columns, dtype=np.int64),
        np.array(values, dtype=number),
        np.zeros(start, dtype=number),  # only its length is read: a compiled function can make arrays of this size
    )


# Numbers from tables are read into variables before inner loops: behind an array they would stop vectorisation,
# because the compiler must assume that a store changes them.


@numba.njit(fastmath=True, cache=True, inline="always")
def _fill(matrices: Any, y: Any, e: Any, tables: Any) -> None:
    """The matrices of one edge."""
    _, places, columns, values, _ = tables
    matrices[:] = 0
    for t in range(places.shape[0]):
        matrices[places[t]] += values[t] * y[e, columns[t]]


@numba.njit(fastmath=True, cache=True, inline="always")
def _load(source: Any, block: Any, n: Any, first: Any, count: Any) -> None:
    for k in range(source.shape[1]):
        for c in range(count):
            block[k, c] = source[n, k, first + c]


@numba.njit(fastmath=True, cache=True, inline="always")
def _apply(block: Any, start: Any, length: Any, matrices: Any, first: Any, out: Any) -> None:
    """One row of a matrix times the components of a block: ``out[c] = sum_a matrix[a] block[start + a, c]``."""
    a = matrices[first]
    for c in range(BLOCK):
        out[c] = a * block[start, c]
    k = 1
    while k + 4 <= length:
        p, q, r, s = start + k, start + k + 1, start + k + 2, start + k + 3
        a, b, d, e = (
            matrices[first + k],
            matrices[first + k + 1],
            matrices[first + k + 2],
            matrices[first + k + 3],
        )
        for c in range(BLOCK):
            out[c] += a * block[p, c] + b * block[q, c] + d * block[r, c] + e * block[s, c]
        k += 4
    while k < length:
        p, a = start + k, matrices[first + k]
        for c in range(BLOCK):
            out[c] += a * block[p, c]
        k += 1


@numba.njit(fastmath=True, cache=True)
def _message_rows(arrays: Any, tables: Any, start: Any, stop: Any) -> None:
    (source, y, w, out, pointers, order, sender), meta = arrays, tables[0]
    channels = source.shape[2]
    padded = (channels + BLOCK - 1) // BLOCK * BLOCK
    total = np.zeros((out.shape[1], padded), source.dtype)
    block = np.zeros((source.shape[1], BLOCK), source.dtype)
    row, weight = np.zeros(BLOCK, source.dtype), np.zeros(BLOCK, source.dtype)
    matrices = np.zeros_like(tables[4])
    for i in range(start, stop):
        total[:] = 0
        for s in range(pointers[i], pointers[i + 1]):
            e = order[s]
            _fill(matrices, y, e, tables)
            for first in range(0, channels, BLOCK):
                count = min(BLOCK, channels - first)
                _load(source, block, sender[e], first, count)
                for p in range(meta.shape[0]):
                    read, n_read, written, column = meta[p, 0], meta[p, 1], meta[p, 2], meta[p, 5]
                    for c in range(count):
                        weight[c] = w[e, column, first + c]
                    for m in range(meta[p, 3]):
                        target = written + m
                        _apply(block, read, n_read, matrices, meta[p, 4] + m * n_read, row)
                        for c in range(BLOCK):
                            total[target, first + c] += weight[c] * row[c]
        for k in range(out.shape[1]):
            for c in range(channels):
                out[i, k, c] = total[k, c]


@numba.njit(fastmath=True, cache=True)
def _weights_rows(arrays: Any, tables: Any, start: Any, stop: Any) -> None:
    (x, y, z, out, pointers, order, sender), meta = arrays, tables[0]
    channels = x.shape[2]
    block = np.zeros((x.shape[1], BLOCK), x.dtype)
    own = np.zeros((z.shape[1], BLOCK), x.dtype)
    row, total = np.zeros(BLOCK, x.dtype), np.zeros(BLOCK, x.dtype)
    matrices = np.zeros_like(tables[4])
    for i in range(start, stop):
        for s in range(pointers[i], pointers[i + 1]):
            e = order[s]
            _fill(matrices, y, e, tables)
            for first in range(0, channels, BLOCK):
                count = min(BLOCK, channels - first)
                _load(x, block, sender[e], first, count)
                _load(z, own, i, first, count)
                for p in range(meta.shape[0]):
                    read, n_read, written, column = meta[p, 0], meta[p, 1], meta[p, 2], meta[p, 5]
                    total[:] = 0
                    for m in range(meta[p, 3]):
                        target = written + m
                        _apply(block, read, n_read, matrices, meta[p, 4] + m * n_read, row)
                        for c in range(BLOCK):
                            total[c] += own[target, c] * row[c]
                    for c in range(count):
                        out[e, column, first + c] = total[c]


@numba.njit(fastmath=True, cache=True)
def _harmonics_rows(arrays: Any, tables: Any, start: Any, stop: Any) -> None:
    (x, w, z, out, pointers, order, sender), (meta, places, columns, values, sized) = arrays, tables
    matrices = np.zeros_like(sized)
    product = np.zeros(x.shape[2], x.dtype)
    for i in range(start, stop):
        for s in range(pointers[i], pointers[i + 1]):
            e = order[s]
            j = sender[e]
            for p in range(meta.shape[0]):
                place, column = meta[p, 4], meta[p, 5]
                for m in range(meta[p, 3]):
                    target = meta[p, 2] + m
                    for c in range(x.shape[2]):
                        product[c] = w[e, column, c] * z[i, target, c]
                    for a in range(meta[p, 1]):
                        source = meta[p, 0] + a
                        total = x[0, 0, 0] - x[0, 0, 0]
                        for c in range(x.shape[2]):
                            total += product[c] * x[j, source, c]
                        matrices[place + m * meta[p, 1] + a] = total
            for t in range(places.shape[0]):
                out[e, columns[t]] += values[t] * matrices[places[t]]


@numba.njit(cache=True, parallel=True)
def _message_parts(arrays: Any, tables: Any, parts: Any) -> None:
    n = arrays[4].shape[0] - 1
    for part in numba.prange(parts):
        _message_rows(arrays, tables, part * n // parts, (part + 1) * n // parts)


@numba.njit(cache=True, parallel=True)
def _weights_parts(arrays: Any, tables: Any, parts: Any) -> None:
    n = arrays[4].shape[0] - 1
    for part in numba.prange(parts):
        _weights_rows(arrays, tables, part * n // parts, (part + 1) * n // parts)


@numba.njit(cache=True, parallel=True)
def _harmonics_parts(arrays: Any, tables: Any, parts: Any) -> None:
    n = arrays[4].shape[0] - 1
    for part in numba.prange(parts):
        _harmonics_rows(arrays, tables, part * n // parts, (part + 1) * n // parts)
