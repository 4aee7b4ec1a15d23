"""CPU loops compiled by numba: parallel over nodes, vectorised over channels. Imported only where they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ._generated import module

compiled: Any = numba.njit(fastmath=True, cache=True)
_config: Any = numba.config
MAX_THREADS: int = _config.NUMBA_NUM_THREADS

Terms = tuple[tuple[int, int, int, float], ...]
"""Sparse trilinear form: (i, j, k, value) adds value x_i y_j to z_k."""

CHUNKS = 8
"""Slices of rows per thread, to even out the load."""

RowKernel = Callable[[int, int, list[Tensor]], None]


def compile_contraction(terms: Terms, n_out: int) -> Callable[[Tensor, Tensor, Tensor], None]:
    """A function that writes ``sum_t value_t x[:, i_t] y[:, j_t]`` to ``z[:, k_t]``; CPU tensors, contiguous.

    Straight-line code for every channel, ordered as ``z_k = sum_i x_i (sum_j value y_j)``: what is loaded stays in
    registers, and the compiler vectorises over channels.
    """
    n_x, n_y = 1 + max(t[0] for t in terms), 1 + max(t[1] for t in terms)
    values = sorted({abs(t[3]) for t in terms})
    sums: list[dict[int, list[str]]] = [{} for _ in range(n_out)]
    for i, j, k, value in terms:
        sign = "+" if value > 0 else "-"
        sums[k].setdefault(i, []).append(f"{sign} k{values.index(abs(value))} * y{j}")

    @cache
    def kernel(channels: int) -> RowKernel:
        body = ["xi = x[i]", "yi = y[i]", "zi = z[i]", "zero = k[0] - k[0]"]
        body += [f"k{n} = k[{n}]" for n in range(len(values))]
        body.append(f"for c in range({channels}):")
        body += [f"    x{i} = xi[{i * channels} + c]" for i in range(n_x)]
        body += [f"    y{j} = yi[{j * channels} + c]" for j in range(n_y)]
        for k, rows in enumerate(sums):
            total = " + ".join(f"x{i} * ({' '.join(row)})" for i, row in rows.items())
            body.append(f"    zi[{k * channels} + c] = {total or 'zero'}")
        return compile_rows(("x", "y", "z"), body, values)

    def contract(x: Tensor, y: Tensor, z: Tensor) -> None:
        kernel(x.shape[2])(x.shape[0], CHUNKS * share_threads(), [x.flatten(1), y.flatten(1), z.flatten(1)])

    return contract


def compile_rows(
    arguments: tuple[str, ...],
    body: list[str],
    coefficients: list[float],
    *,
    helpers: Sequence[str] = (),
    first: Sequence[str] = (),
) -> RowKernel:
    """A function that runs generated lines for every row i of its arguments.

    Args:
        arguments: names of the arrays that the lines read and write.
        body: lines of code for one row ``i``; ``part`` is the number of the slice of rows that i belongs to, and
            ``k`` the coefficients in the dtype of the arrays.
        coefficients: numbers that the lines use; literals in the code would be double precision.
        helpers: code of functions that the lines call.
        first: lines that run once per slice of rows.

    Returns:
        ``run(n_rows, n_parts, tensors)``: rows in n_parts slices, shared among threads.
    """
    names = ", ".join((*arguments, "k", "n_rows", "n_parts"))
    lines = ["import numba", "import numpy as np", *helpers]
    for name, options, parts in (("one", "", "range"), ("many", ", parallel=True", "numba.prange")):
        lines += [
            f"@numba.njit(fastmath=True, cache=True, error_model='numpy'{options})",
            f"def {name}({names}):",
            f"    for part in {parts}(n_parts):",
            *(f"        {line}" for line in first),
            "        for i in range(part * n_rows // n_parts, (part + 1) * n_rows // n_parts):",
            *(f"            {line}" for line in body),
        ]
    loaded = module("\n".join(lines))
    tables = {dtype: np.array(coefficients or [0.0], dtype=dtype) for dtype in (np.float32, np.float64)}

    def run(n_rows: int, n_parts: int, tensors: list[Tensor]) -> None:
        kernel = loaded.many if share_threads() > 1 else loaded.one
        arrays = [t.detach().contiguous().numpy() for t in tensors]
        kernel(*arrays, tables[arrays[0].dtype.type], n_rows, n_parts)

    return run


def share_threads() -> int:
    """Threads that a kernel may use: torch's number. A pool of idle threads waits by spinning: one starts none."""
    threads = min(torch.get_num_threads(), MAX_THREADS)
    if threads > 1:
        numba.set_num_threads(threads)
    return threads


@compiled
def outer(y: Any, q: Any, out: Any) -> None:
    """``out[e, k, r] = y[e, k] q[e, r]``."""
    for e in range(y.shape[0]):
        for k in range(y.shape[1]):
            for r in range(q.shape[1]):
                out[e, k, r] = y[e, k] * q[e, r]


@compiled
def sum_r(b: Any, q: Any, out: Any) -> None:
    """``out[e, k] = sum_r b[e, k, r] q[e, r]``."""
    for e in range(b.shape[0]):
        for k in range(b.shape[1]):
            total = b[e, k, 0] * q[e, 0]
            for r in range(1, b.shape[2]):
                total += b[e, k, r] * q[e, r]
            out[e, k] = total


@compiled
def sum_k(b: Any, y: Any, out: Any) -> None:
    """``out[e, r] = sum_k b[e, k, r] y[e, k]``."""
    for e in range(b.shape[0]):
        for r in range(b.shape[2]):
            out[e, r] = b[e, 0, r] * y[e, 0]
        for k in range(1, b.shape[1]):
            for r in range(b.shape[2]):
                out[e, r] += b[e, k, r] * y[e, k]
