"""CPU loops compiled by numba: parallel over nodes, vectorised over channels. Imported only where they run."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

compiled: Any = numba.njit(fastmath=True, cache=True)
_config: Any = numba.config
MAX_THREADS: int = _config.NUMBA_NUM_THREADS

Terms = tuple[tuple[int, int, int, float], ...]
"""Sparse trilinear form: (i, j, k, value) adds value x_i y_j to z_k."""


def compile_contraction(terms: Terms, n_out: int) -> Callable[[Tensor, Tensor, Tensor], None]:
    """A function that writes ``sum_t value_t x[:, i_t] y[:, j_t]`` to ``z[:, k_t]``; CPU tensors ``(N, K, C)``.

    Straight-line code: everything stays in registers between loads and stores.
    """
    sums: list[list[str]] = [[] for _ in range(n_out)]
    for t, (i, j, k, _) in enumerate(terms):
        sums[k].append(f"w[{t}] * x{i} * y{j}")
    used_x, used_y = sorted({i for i, *_ in terms}), sorted({j for _, j, *_ in terms})
    body = [f"x{i} = x[n, {i}, c]" for i in used_x] + [f"y{j} = y[n, {j}, c]" for j in used_y]
    body += [f"z[n, {k}, c] = {' + '.join(s) if s else '0.0'}" for k, s in enumerate(sums)]
    lines = ["import numba"]
    for name, options, nodes in (("one", "", "range"), ("many", ", parallel=True", "numba.prange")):
        lines += [
            f"@numba.njit(fastmath=True, cache=True{options})",
            f"def {name}(x, y, z, w):",
            f"    for n in {nodes}(x.shape[0]):",
            "        for c in range(x.shape[2]):",
            *(f"            {line}" for line in body),
        ]
    module = _module("\n".join(lines))
    # The weights have the dtype of the tensors, or the loop would run in double precision.
    weights = {dtype: np.array([t[3] for t in terms], dtype=dtype) for dtype in (np.float32, np.float64)}

    def contract(x: Tensor, y: Tensor, z: Tensor) -> None:
        # A pool of idle threads would wait by spinning: with one thread no pool is ever started.
        threads = torch.get_num_threads()
        if threads > 1:
            numba.set_num_threads(min(threads, MAX_THREADS))
        run = module.many if threads > 1 else module.one
        run(x.numpy(), y.numpy(), z.numpy(), weights[z.numpy().dtype.type])

    return contract


def _module(source: str) -> Any:
    """Import generated source from the user's cache folder, where numba also keeps the machine code."""
    root = Path(os.environ.get("TESSERAL_CACHE") or Path.home() / ".cache" / "tesseral") / "kernels"
    root.mkdir(parents=True, exist_ok=True)
    name = "contraction_" + hashlib.sha256(source.encode()).hexdigest()[:16]
    path = root / f"{name}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != source:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(source, encoding="utf-8")
        os.replace(temporary, path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import the generated kernel {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # numba finds its stored machine code by the module's name
    spec.loader.exec_module(module)
    return module


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
