"""GPU kernels in CUDA C, generated from coefficient tables and compiled by NVRTC at first use, through CuPy.

CuPy keeps the machine code in its cache folder. Imported only where the kernels run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

THREADS = 128
_C_TYPES = {torch.float32: "float", torch.float64: "double"}

Terms = tuple[tuple[int, int, int, float], ...]
"""Sparse trilinear form: (i, j, k, value) adds value x_i y_j to z_k."""


def compile_contraction(terms: Terms, rows: tuple[int, int, int]) -> Callable[[Tensor, Tensor, Tensor], None]:
    """A function that writes ``sum_t value_t x[:, i_t] y[:, j_t]`` to ``z[:, k_t]``.

    Args:
        terms: the form.
        rows: numbers of rows K of x, y and z, CUDA tensors ``(N, K, C)`` in the function's arguments.

    One thread per node and channel, neighbouring threads are neighbouring channels: every load is coalesced, and
    everything stays in registers between loads and stores.
    """

    def contract(x: Tensor, y: Tensor, z: Tensor) -> None:
        pairs = z.shape[0] * z.shape[2]
        if pairs == 0:
            return
        run = _load(contraction_source(terms, rows, _C_TYPES[z.dtype]), "contract", z.device)
        pointers = [np.uint64(t.data_ptr()) for t in (x, y, z)]
        run(-(-pairs // THREADS), (*pointers, np.int64(pairs), np.int64(z.shape[2])))

    return contract


@lru_cache(maxsize=256)
def contraction_source(terms: Terms, rows: tuple[int, int, int], c_type: str) -> str:
    """CUDA C of `compile_contraction`: a kernel ``contract(x, y, z, pairs, channels)``.

    Source: Gaunt tensor products (arXiv 2401.10216), sparse form in coefficients.
    """
    by_pair: dict[int, dict[int, list[tuple[int, float]]]] = {}
    for i, j, k, value in terms:
        by_pair.setdefault(i, {}).setdefault(j, []).append((k, value))
    used_y = sorted({j for _, j, *_ in terms})
    body = [f"const real y{j} = y[{j} * channels];" for j in used_y]
    body += [f"real z{k} = 0;" for k in range(rows[2])]
    for i, partners in sorted(by_pair.items()):
        lines = [f"const real xi = x[{i} * channels];"]
        for j, targets in sorted(partners.items()):
            sums = " ".join(f"z{k} += real({value!r}) * p;" for k, value in targets)
            lines.append(f"{{ const real p = xi * y{j}; {sums} }}")
        body += ["{", *(f"    {line}" for line in lines), "}"]
    body += [f"z[{k} * channels] = z{k};" for k in range(rows[2])]
    head = f"""typedef {c_type} real;
extern "C" __global__ void __launch_bounds__({THREADS}) contract(
    const real* __restrict__ x, const real* __restrict__ y, real* __restrict__ z, long long pairs, long long channels)
{{
    const long long pair = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    const long long node = pair / channels, channel = pair - node * channels;
    x += node * {rows[0]} * channels + channel;
    y += node * {rows[1]} * channels + channel;
    z += node * {rows[2]} * channels + channel;
"""
    return head + "\n".join(f"    {line}" for line in body) + "\n}\n"


@lru_cache(maxsize=256)
def _load(source: str, name: str, device: torch.device) -> Callable[[int, tuple[Any, ...]], None]:
    """A function that launches blocks of a kernel with these arguments on torch's current stream."""
    import cupy

    kernel = cupy.RawKernel(source, name)

    def run(blocks: int, arguments: tuple[Any, ...]) -> None:
        stream = torch.cuda.current_stream(device).cuda_stream
        with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream, device.index):
            kernel((blocks,), (THREADS,), arguments)

    return run
