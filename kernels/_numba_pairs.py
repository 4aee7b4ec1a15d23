"""Pair products on the CPU: one compiled loop for every set of paths, driven by tables.

Channels are taken in blocks of fixed length, in which every inner loop is one stretch of vector instructions.
"""

from __future__ import annotations

from functools import cache, lru_cache
from math import sqrt
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ._numba import CHUNKS, share_threads
from .conventions import w3j

BLOCK = 64  # channels
ROLES = ((0, 1, 2), (2, 1, 0), (2, 0, 1))
"""Places of the form F(x, y, z) that are contracted, and last the one that is left open; as in `pairs.ROLES`."""


def couple(a: Tensor, b: Tensor, w: Tensor, paths: list[int], opened: list[int]) -> Tensor:
    """Derivative of the form with respect to the argument left open: its role and rows, see `pairs`."""
    role, rows = opened
    out = a.new_empty(a.shape[0], rows, a.shape[2])
    _run(_couple_rows, _couple_parts, (a, b, w, out), _tables(tuple(paths), role, a.dtype))
    return out


def strengths(x: Tensor, y: Tensor, z: Tensor, paths: list[int]) -> Tensor:
    """The form per node, path and channel, see `pairs`."""
    out = x.new_empty(x.shape[0], len(paths) // 3, x.shape[2])
    _run(_strengths_rows, _strengths_parts, (x, y, z, out), _tables(tuple(paths), 0, x.dtype))
    return out


def _run(rows: Any, parts: Any, tensors: tuple[Tensor, ...], tables: tuple[np.ndarray, ...]) -> None:
    """All rows on one thread, or in parts shared among threads."""
    arrays = tuple(t.detach().contiguous().numpy() for t in tensors)
    threads = share_threads()
    if threads > 1:
        parts(arrays, tables, CHUNKS * threads)
    else:
        rows(arrays, tables, 0, tensors[0].shape[0])


@lru_cache(maxsize=256)
def _tables(paths: tuple[int, ...], role: int, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    """Paths (sorted, so that products of one pair of blocks are formed once), row pointers, and coefficients."""
    meta, pointers, pairs, values = [], [0], [], []
    triples = [paths[k : k + 3] for k in range(0, len(paths), 3)]
    order = ROLES[role]
    for s in sorted(range(len(triples)), key=lambda s: [triples[s][k] for k in order]):
        la, lb, lc = (triples[s][k] for k in order)
        meta.append((la * la, 2 * la + 1, lb * lb, 2 * lb + 1, lc * lc, 2 * lc + 1, len(pointers) - 1, s))
        for pair, value in _sparse_rows(triples[s], role):
            pairs.append(pair)
            values.append(value)
            pointers.append(pointers[-1] + len(pair))
    number = np.float32 if dtype == torch.float32 else np.float64
    return (
        np.array(meta, dtype=np.int64).reshape(-1, 8),
        np.array(pointers, dtype=np.int64),
        np.concatenate([np.zeros(0, dtype=np.int64), *pairs]),
        np.concatenate([np.zeros(0), *values]).astype(number),
    )


@cache
def _sparse_rows(path: tuple[int, int, int], role: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every row of the open argument: flat indices of the two others, and coefficients."""
    table = sqrt(2 * path[2] + 1) * w3j(*path).transpose(ROLES[role])
    rows = []
    for k in range(table.shape[2]):
        flat = table[:, :, k].ravel()
        where = np.flatnonzero(np.abs(flat) > 1e-12)
        rows.append((where, flat[where]))
    return rows


# Numbers from tables are read into variables before inner loops: behind an array they would stop vectorisation,
# because the compiler must assume that a store changes them.


@numba.njit(cache=True)
def _largest_block(meta: Any) -> int:
    size = 1
    for s in range(meta.shape[0]):
        size = max(size, meta[s, 1] * meta[s, 3])
    return size


@numba.njit(fastmath=True, cache=True, inline="always")
def _load(source: Any, block: Any, n: int, first: int, count: int) -> None:
    for k in range(source.shape[1]):
        for c in range(count):
            block[k, c] = source[n, k, first + c]


@numba.njit(fastmath=True, cache=True, inline="always")
def _products(a: Any, b: Any, path: Any, out: Any) -> None:
    first_a, n_a, first_b, n_b = path[0], path[1], path[2], path[3]
    for i in range(n_a):
        for j in range(n_b):
            p, q, r = i * n_b + j, first_a + i, first_b + j
            for c in range(BLOCK):
                out[p, c] = a[q, c] * b[r, c]


@numba.njit(fastmath=True, cache=True, inline="always")
def _sum_terms(products: Any, terms: Any, t: int, end: int, out: Any) -> None:
    pairs, values = terms
    for c in range(BLOCK):
        out[c] = 0
    while t + 4 <= end:
        p, q, r, s = pairs[t], pairs[t + 1], pairs[t + 2], pairs[t + 3]
        a, b, d, e = values[t], values[t + 1], values[t + 2], values[t + 3]
        for c in range(BLOCK):
            out[c] += a * products[p, c] + b * products[q, c] + d * products[r, c] + e * products[s, c]
        t += 4
    while t < end:
        p, a = pairs[t], values[t]
        for c in range(BLOCK):
            out[c] += a * products[p, c]
        t += 1


@numba.njit(fastmath=True, cache=True)
def _couple_rows(arrays: Any, tables: Any, start: int, stop: int) -> None:
    (a, b, w, out), (meta, pointers, pairs, values) = arrays, tables
    block_a = np.zeros((a.shape[1], BLOCK), a.dtype)
    block_b = np.zeros((b.shape[1], BLOCK), a.dtype)
    block_out = np.zeros((out.shape[1], BLOCK), a.dtype)
    block_w = np.zeros(BLOCK, a.dtype)
    products = np.zeros((_largest_block(meta), BLOCK), a.dtype)
    row = np.zeros(BLOCK, a.dtype)
    for n in range(start, stop):
        for first in range(0, a.shape[2], BLOCK):
            count = min(BLOCK, a.shape[2] - first)
            _load(a, block_a, n, first, count)
            _load(b, block_b, n, first, count)
            block_out[:] = 0
            for s in range(meta.shape[0]):
                path = meta[s]
                if s == 0 or path[0] != meta[s - 1, 0] or path[2] != meta[s - 1, 2]:
                    _products(block_a, block_b, path, products)
                weight = path[7]
                for c in range(count):
                    block_w[c] = w[n, weight, first + c]
                for k in range(path[5]):
                    t, target = path[6] + k, path[4] + k
                    _sum_terms(products, (pairs, values), pointers[t], pointers[t + 1], row)
                    for c in range(BLOCK):
                        block_out[target, c] += block_w[c] * row[c]
            for k in range(out.shape[1]):
                for c in range(count):
                    out[n, k, first + c] = block_out[k, c]


@numba.njit(fastmath=True, cache=True)
def _strengths_rows(arrays: Any, tables: Any, start: int, stop: int) -> None:
    (x, y, z, out), (meta, pointers, pairs, values) = arrays, tables
    block_x = np.zeros((x.shape[1], BLOCK), x.dtype)
    block_y = np.zeros((y.shape[1], BLOCK), x.dtype)
    block_z = np.zeros((z.shape[1], BLOCK), x.dtype)
    products = np.zeros((_largest_block(meta), BLOCK), x.dtype)
    row = np.zeros(BLOCK, x.dtype)
    total = np.zeros(BLOCK, x.dtype)
    for n in range(start, stop):
        for first in range(0, x.shape[2], BLOCK):
            count = min(BLOCK, x.shape[2] - first)
            _load(x, block_x, n, first, count)
            _load(y, block_y, n, first, count)
            _load(z, block_z, n, first, count)
            for s in range(meta.shape[0]):
                path = meta[s]
                if s == 0 or path[0] != meta[s - 1, 0] or path[2] != meta[s - 1, 2]:
                    _products(block_x, block_y, path, products)
                total[:] = 0
                for k in range(path[5]):
                    t, target = path[6] + k, path[4] + k
                    _sum_terms(products, (pairs, values), pointers[t], pointers[t + 1], row)
                    for c in range(BLOCK):
                        total[c] += block_z[target, c] * row[c]
                weight = path[7]
                for c in range(count):
                    out[n, weight, first + c] = total[c]


@numba.njit(cache=True, parallel=True)
def _couple_parts(arrays: Any, tables: Any, parts: int) -> None:
    n = arrays[0].shape[0]
    for part in numba.prange(parts):
        _couple_rows(arrays, tables, part * n // parts, (part + 1) * n // parts)


@numba.njit(cache=True, parallel=True)
def _strengths_parts(arrays: Any, tables: Any, parts: int) -> None:
    n = arrays[0].shape[0]
    for part in numba.prange(parts):
        _strengths_rows(arrays, tables, part * n // parts, (part + 1) * n // parts)
