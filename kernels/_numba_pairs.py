"""Pair products on the CPU: one compiled loop for every set of paths, driven by tables.

Nodes and channels together are taken in blocks of fixed length, in which every inner loop is one stretch of vector
instructions. Weights that all nodes share have one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from math import sqrt
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ._numba import CHUNKS, share_threads
from .conventions import w3j

BLOCK = 96  # pairs of node and channel; longer ones leave the nearest cache
ROLES = ((0, 1, 2), (2, 1, 0), (2, 0, 1))
"""Places of the form F(x, y, z) that are contracted, and last the one that is left open; as in `pairs.ROLES`."""


def couple(a: Tensor, b: Tensor, w: Tensor, paths: list[int], opened: list[int]) -> Tensor:
    """Derivative of the form with respect to the argument left open: its role and rows, see `pairs`."""
    role, rows = opened
    out = a.new_empty(a.shape[0], rows, a.shape[2])
    _run(_couple_lanes, _couple_parts, (a, b, w, out), _tables(tuple(paths), role, a.dtype))
    return out


def strengths(x: Tensor, y: Tensor, z: Tensor, paths: list[int], shared: bool) -> Tensor:
    """The form per node (or the sum over nodes), path and channel, see `pairs`."""
    out = _strengths_like(x, paths, shared)
    _run(_strengths_lanes, _strengths_parts, (x, y, z, out), _tables(tuple(paths), 0, x.dtype))
    return out.sum(0, keepdim=True) if shared else out


def gradients(
    x: Tensor, y: Tensor, w: Tensor, z: Tensor, paths: list[int], shared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the form with respect to x, y and w at once, see `pairs`."""
    to_x, to_y = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, y))
    to_w = _strengths_like(x, paths, shared)
    arrays = (x, y, w, z, to_x, to_y, to_w)
    _run(_gradient_lanes, _gradient_parts, arrays, _outer_tables(tuple(paths), x.dtype))
    return to_x, to_y, to_w.sum(0, keepdim=True) if shared else to_w


def _parts() -> int:
    threads = share_threads()
    return CHUNKS * threads if threads > 1 else 1


def _strengths_like(x: Tensor, paths: list[int], shared: bool) -> Tensor:
    """Room for the strengths of every node, or zeros for the sums of every part."""
    shape = (len(paths) // 3, x.shape[2])
    return x.new_zeros(_parts(), *shape) if shared else x.new_empty(x.shape[0], *shape)


def _run(lanes: Any, parts: Any, tensors: tuple[Tensor, ...], tables: tuple[np.ndarray, ...]) -> None:
    """All lanes on one thread, or in parts shared among threads."""
    arrays = tuple(t.detach().contiguous().numpy() for t in tensors)
    n = tensors[0].shape[0] * tensors[0].shape[2]
    count = _parts()
    if count > 1:
        parts(arrays, tables, n, count)
    else:
        lanes(arrays, tables, 0, n, 0)


Triples = list[tuple[int, ...]]


@lru_cache(maxsize=256)
def _tables(paths: tuple[int, ...], role: int, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    """Paths (sorted, so that products of one pair of blocks are formed once), row pointers, and coefficients."""
    triples = [paths[k : k + 3] for k in range(0, len(paths), 3)]
    return _sparse_tables(triples, ROLES[role], dtype)


@lru_cache(maxsize=256)
def _outer_tables(paths: tuple[int, ...], dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    """The same with z contracted, rows (i, j): per path where x, y and z begin, their rows, first row, weight."""
    triples = [paths[k : k + 3] for k in range(0, len(paths), 3)]
    meta, pointers, pairs, values = [], [0], [], []
    for s in range(len(triples)):
        l1, l2, l3 = triples[s]
        meta.append((l1 * l1, 2 * l1 + 1, l2 * l2, 2 * l2 + 1, l3 * l3, len(pointers) - 1, s, 0))
        for pair, value in _outer_rows(triples[s]):
            pairs.append(pair)
            values.append(value)
            pointers.append(pointers[-1] + len(pair))
    return _arrays(meta, pointers, pairs, values, dtype)


def _sparse_tables(triples: Triples, order: tuple[int, int, int], dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    meta, pointers, pairs, values = [], [0], [], []
    for s in sorted(range(len(triples)), key=lambda s: [triples[s][k] for k in order]):
        la, lb, lc = (triples[s][k] for k in order)
        meta.append((la * la, 2 * la + 1, lb * lb, 2 * lb + 1, lc * lc, 2 * lc + 1, len(pointers) - 1, s))
        for pair, value in _sparse_rows(triples[s], order):
            pairs.append(pair)
            values.append(value)
            pointers.append(pointers[-1] + len(pair))
    return _arrays(meta, pointers, pairs, values, dtype)


def _arrays(
    meta: Sequence[tuple[int, ...]],
    pointers: list[int],
    pairs: list[np.ndarray],
    values: list[np.ndarray],
    dtype: torch.dtype,
) -> tuple[np.ndarray, ...]:
    return (
        np.array(meta, dtype=np.int64).reshape(-1, 8),
        np.array(pointers, dtype=np.int64),
        np.concatenate([np.zeros(0, dtype=np.int64), *pairs]),
        np.concatenate([np.zeros(0), *values]).astype(np.float32 if dtype == torch.float32 else np.float64),
    )


@cache
def _sparse_rows(path: tuple[int, int, int], order: tuple[int, int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every row of the open argument: flat indices of the two others, and coefficients."""
    table = sqrt(2 * path[2] + 1) * w3j(*path).transpose(order)
    return _nonzero([table[:, :, k].ravel() for k in range(table.shape[2])])


@cache
def _outer_rows(path: tuple[int, int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every pair of rows of x and y: rows of z, and coefficients."""
    table = sqrt(2 * path[2] + 1) * w3j(*path)
    return _nonzero(list(table.reshape(-1, table.shape[2])))


def _nonzero(rows: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    found = [np.flatnonzero(np.abs(row) > 1e-12) for row in rows]
    return [(where, row[where]) for where, row in zip(found, rows, strict=True)]


# Numbers from tables are read into variables before inner loops: behind an array they would stop vectorisation,
# because the compiler must assume that a store changes them.


@numba.njit(cache=True)
def _largest_block(meta: Any) -> int:
    size = 1
    for s in range(meta.shape[0]):
        size = max(size, meta[s, 1] * meta[s, 3])
    return size


@numba.njit(cache=True, inline="always")
def _segments(channels: Any, first: Any, stop: Any, segments: Any) -> Any:
    """Stretches of lanes of the same node: first lane, node, first channel, length; returns their number."""
    lane, found = 0, 0
    count = min(BLOCK, stop - first)
    while lane < count:
        n, c = (first + lane) // channels, (first + lane) % channels
        length = min(channels - c, count - lane)
        segments[found, 0], segments[found, 1], segments[found, 2], segments[found, 3] = lane, n, c, length
        lane += length
        found += 1
    return found


@numba.njit(fastmath=True, cache=True, inline="always")
def _load(source: Any, block: Any, segments: Any, found: Any) -> None:
    for s in range(found):
        lane, n, first, length = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
        for k in range(source.shape[1]):
            for c in range(length):
                block[k, lane + c] = source[n, k, first + c]


@numba.njit(fastmath=True, cache=True, inline="always")
def _load_row(source: Any, row: Any, k: Any, segments: Any, found: Any) -> None:
    """One row of weights, of which there may be one set for all nodes."""
    for s in range(found):
        lane, n, first, length = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
        n = n if source.shape[0] > 1 else 0
        for c in range(length):
            row[lane + c] = source[n, k, first + c]


@numba.njit(fastmath=True, cache=True, inline="always")
def _store(out: Any, block: Any, segments: Any, found: Any) -> None:
    for s in range(found):
        lane, n, first, length = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
        for k in range(out.shape[1]):
            for c in range(length):
                out[n, k, first + c] = block[k, lane + c]


@numba.njit(fastmath=True, cache=True, inline="always")
def _store_strengths(out: Any, row: Any, k: Any, segments: Any, found: Any, nodes: Any, part: Any) -> None:
    """One row of strengths: of every node, or added to the sum of this part over nodes."""
    for s in range(found):
        lane, n, first, length = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
        if nodes:
            for c in range(length):
                out[n, k, first + c] = row[lane + c]
        else:
            for c in range(length):
                out[part, k, first + c] += row[lane + c]


@numba.njit(fastmath=True, cache=True, inline="always")
def _products(a: Any, b: Any, path: Any, out: Any) -> None:
    first_a, n_a, first_b, n_b = path[0], path[1], path[2], path[3]
    for i in range(n_a):
        for j in range(n_b):
            p, q, r = i * n_b + j, first_a + i, first_b + j
            for c in range(BLOCK):
                out[p, c] = a[q, c] * b[r, c]


@numba.njit(fastmath=True, cache=True, inline="always")
def _sum_terms(block: Any, first: Any, terms: Any, t: Any, end: Any, out: Any) -> None:
    """``out = sum of values[t] block[first + rows[t]]`` for t up to end, at least one."""
    rows, values = terms
    if t + 4 <= end:
        p, q, r, s = first + rows[t], first + rows[t + 1], first + rows[t + 2], first + rows[t + 3]
        a, b, d, e = values[t], values[t + 1], values[t + 2], values[t + 3]
        for c in range(BLOCK):
            out[c] = a * block[p, c] + b * block[q, c] + d * block[r, c] + e * block[s, c]
        t += 4
    elif t + 2 <= end:
        p, q = first + rows[t], first + rows[t + 1]
        a, b = values[t], values[t + 1]
        for c in range(BLOCK):
            out[c] = a * block[p, c] + b * block[q, c]
        t += 2
    else:
        p, a = first + rows[t], values[t]
        for c in range(BLOCK):
            out[c] = a * block[p, c]
        t += 1
    while t + 4 <= end:
        p, q, r, s = first + rows[t], first + rows[t + 1], first + rows[t + 2], first + rows[t + 3]
        a, b, d, e = values[t], values[t + 1], values[t + 2], values[t + 3]
        for c in range(BLOCK):
            out[c] += a * block[p, c] + b * block[q, c] + d * block[r, c] + e * block[s, c]
        t += 4
    while t + 2 <= end:
        p, q = first + rows[t], first + rows[t + 1]
        a, b = values[t], values[t + 1]
        for c in range(BLOCK):
            out[c] += a * block[p, c] + b * block[q, c]
        t += 2
    if t < end:
        p, a = first + rows[t], values[t]
        for c in range(BLOCK):
            out[c] += a * block[p, c]


@numba.njit(fastmath=True, cache=True)
def _couple_lanes(arrays: Any, tables: Any, start: int, stop: int, part: int) -> None:
    (a, b, w, out), (meta, pointers, pairs, values) = arrays, tables
    block_a = np.zeros((a.shape[1], BLOCK), a.dtype)
    block_b = np.zeros((b.shape[1], BLOCK), a.dtype)
    block_out = np.zeros((out.shape[1], BLOCK), a.dtype)
    block_w = np.zeros(BLOCK, a.dtype)
    products = np.zeros((_largest_block(meta), BLOCK), a.dtype)
    row = np.zeros(BLOCK, a.dtype)
    segments = np.zeros((BLOCK, 4), np.int64)
    for first in range(start, stop, BLOCK):
        found = _segments(a.shape[2], first, stop, segments)
        _load(a, block_a, segments, found)
        _load(b, block_b, segments, found)
        block_out[:] = 0
        for s in range(meta.shape[0]):
            path = meta[s]
            if s == 0 or path[0] != meta[s - 1, 0] or path[2] != meta[s - 1, 2]:
                _products(block_a, block_b, path, products)
            _load_row(w, block_w, path[7], segments, found)
            for k in range(path[5]):
                t, target = path[6] + k, path[4] + k
                _sum_terms(products, 0, (pairs, values), pointers[t], pointers[t + 1], row)
                for c in range(BLOCK):
                    block_out[target, c] += block_w[c] * row[c]
        _store(out, block_out, segments, found)


@numba.njit(fastmath=True, cache=True)
def _strengths_lanes(arrays: Any, tables: Any, start: int, stop: int, part: int) -> None:
    (x, y, z, out), (meta, pointers, pairs, values) = arrays, tables
    block_x = np.zeros((x.shape[1], BLOCK), x.dtype)
    block_y = np.zeros((y.shape[1], BLOCK), x.dtype)
    block_z = np.zeros((z.shape[1], BLOCK), x.dtype)
    products = np.zeros((_largest_block(meta), BLOCK), x.dtype)
    row, total = np.zeros(BLOCK, x.dtype), np.zeros(BLOCK, x.dtype)
    segments = np.zeros((BLOCK, 4), np.int64)
    nodes = out.shape[0] == x.shape[0]
    for first in range(start, stop, BLOCK):
        found = _segments(x.shape[2], first, stop, segments)
        _load(x, block_x, segments, found)
        _load(y, block_y, segments, found)
        _load(z, block_z, segments, found)
        for s in range(meta.shape[0]):
            path = meta[s]
            if s == 0 or path[0] != meta[s - 1, 0] or path[2] != meta[s - 1, 2]:
                _products(block_x, block_y, path, products)
            total[:] = 0
            for k in range(path[5]):
                t, target = path[6] + k, path[4] + k
                _sum_terms(products, 0, (pairs, values), pointers[t], pointers[t + 1], row)
                for c in range(BLOCK):
                    total[c] += block_z[target, c] * row[c]
            _store_strengths(out, total, path[7], segments, found, nodes, part)


@numba.njit(fastmath=True, cache=True)
def _gradient_lanes(arrays: Any, tables: Any, start: int, stop: int, part: int) -> None:
    (x, y, w, z, to_x, to_y, to_w), (meta, pointers, rows, values) = arrays, tables
    block_x = np.zeros((x.shape[1], BLOCK), x.dtype)
    block_y = np.zeros((y.shape[1], BLOCK), x.dtype)
    block_z = np.zeros((z.shape[1], BLOCK), x.dtype)
    out_x = np.zeros((x.shape[1], BLOCK), x.dtype)
    out_y = np.zeros((y.shape[1], BLOCK), x.dtype)
    weight, total = np.zeros(BLOCK, x.dtype), np.zeros(BLOCK, x.dtype)
    row, beside = np.zeros(BLOCK, x.dtype), np.zeros(BLOCK, x.dtype)
    segments = np.zeros((BLOCK, 4), np.int64)
    nodes = to_w.shape[0] == x.shape[0]
    for first in range(start, stop, BLOCK):
        found = _segments(x.shape[2], first, stop, segments)
        _load(x, block_x, segments, found)
        _load(y, block_y, segments, found)
        _load(z, block_z, segments, found)
        out_x[:] = 0
        out_y[:] = 0
        for s in range(meta.shape[0]):
            first_x, n_x, first_y, n_y = meta[s, 0], meta[s, 1], meta[s, 2], meta[s, 3]
            first_z, first_row, column = meta[s, 4], meta[s, 5], meta[s, 6]
            _load_row(w, weight, column, segments, found)
            total[:] = 0
            for i in range(n_x):
                a = first_x + i
                beside[:] = 0
                for j in range(n_y):
                    t = first_row + i * n_y + j
                    begin, end = pointers[t], pointers[t + 1]
                    if begin == end:
                        continue
                    b = first_y + j
                    _sum_terms(block_z, first_z, (rows, values), begin, end, row)
                    for c in range(BLOCK):
                        beside[c] += row[c] * block_y[b, c]
                        out_y[b, c] += weight[c] * row[c] * block_x[a, c]
                for c in range(BLOCK):
                    out_x[a, c] += weight[c] * beside[c]
                    total[c] += beside[c] * block_x[a, c]
            _store_strengths(to_w, total, column, segments, found, nodes, part)
        _store(to_x, out_x, segments, found)
        _store(to_y, out_y, segments, found)


@numba.njit(cache=True, parallel=True)
def _couple_parts(arrays: Any, tables: Any, n: int, parts: int) -> None:
    for part in numba.prange(parts):
        _couple_lanes(arrays, tables, part * n // parts, (part + 1) * n // parts, part)


@numba.njit(cache=True, parallel=True)
def _strengths_parts(arrays: Any, tables: Any, n: int, parts: int) -> None:
    for part in numba.prange(parts):
        _strengths_lanes(arrays, tables, part * n // parts, (part + 1) * n // parts, part)


@numba.njit(cache=True, parallel=True)
def _gradient_parts(arrays: Any, tables: Any, n: int, parts: int) -> None:
    for part in numba.prange(parts):
        _gradient_lanes(arrays, tables, part * n // parts, (part + 1) * n // parts, part)
