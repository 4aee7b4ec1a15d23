"""CPU kernels of spherical harmonics: values, the change along dv, and the gradient, by one recursion over degrees."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from torch import Tensor

from ._numba import CHUNKS, RowKernel, compile_rows, share_threads
from .harmonics_reference import raise_degree


def harmonics(v: Tensor, lmax: int) -> Tensor:
    """Harmonics ``(E, (lmax+1)^2)`` of the directions of v ``(E, 3)``."""
    return _run(_values(lmax), [v, v.new_empty(v.shape[0], (lmax + 1) ** 2)])


def tangent(v: Tensor, dv: Tensor, lmax: int) -> Tensor:
    """Change of the harmonics along dv ``(E, 3)``."""
    return _run(_tangent(lmax), [v, dv, v.new_empty(v.shape[0], (lmax + 1) ** 2)])


def gradient(v: Tensor, f: Tensor, lmax: int) -> Tensor:
    """Gradient ``(E, 3)`` with respect to v of the sum of f ``(E, (lmax+1)^2)`` times the harmonics."""
    return _run(_gradient(lmax), [v, f, v.new_empty(v.shape[0], 3)])


def _run(kernel: RowKernel, tensors: list[Tensor]) -> Tensor:
    kernel(tensors[0].shape[0], CHUNKS * share_threads(), tensors)
    return tensors[-1]


_UNIT = [
    "s = one / np.sqrt(v[i, 0] * v[i, 0] + v[i, 1] * v[i, 1] + v[i, 2] * v[i, 2])",
    "n0 = v[i, 0] * s",
    "n1 = v[i, 1] * s",
    "n2 = v[i, 2] * s",
]


class _Recursion:
    """The stretched couplings ``Y_l = sum c Y_{l-1} n`` as lists (index below, axis, index, code of c)."""

    def __init__(self, lmax: int):
        self.coefficients: list[float] = [1.0]
        self.terms: list[list[tuple[int, int, int, str]]] = [[]]
        for l in range(1, lmax + 1):
            table = raise_degree(l).reshape(2 * l - 1, 3, 2 * l + 1)
            rows = []
            for b, a, m in np.argwhere(np.abs(table) > 1e-12).tolist():
                self.coefficients.append(float(table[b, a, m]))
                code = f"k[{len(self.coefficients) - 1}]"
                rows.append(((l - 1) ** 2 + b, a, l * l + m, code))
            self.terms.append(rows)

    def lines(self, lmax: int, name: str, product: str) -> list[str]:
        """Assignments of name0 .. from lower degrees; `product` has the fields {c}, {b} and {a}."""
        out = []
        for l in range(1, lmax + 1):
            for m in range(l * l, (l + 1) ** 2):
                terms = [product.format(c=c, b=b, a=a) for b, a, to, c in self.terms[l] if to == m]
                out.append(f"{name}{m} = {' + '.join(terms)}")
        return out


@lru_cache(maxsize=16)
def _values(lmax: int) -> RowKernel:
    recursion = _Recursion(lmax)
    body = ["one = k[0]", *_UNIT, "y0 = one", *recursion.lines(lmax, "y", "{c} * y{b} * n{a}")]
    body += [f"out[i, {m}] = y{m}" for m in range((lmax + 1) ** 2)]
    return compile_rows(("v", "out"), body, recursion.coefficients)


@lru_cache(maxsize=16)
def _tangent(lmax: int) -> RowKernel:
    recursion = _Recursion(lmax)
    body = ["one = k[0]", *_UNIT, "along = n0 * dv[i, 0] + n1 * dv[i, 1] + n2 * dv[i, 2]"]
    body += [f"t{a} = (dv[i, {a}] - n{a} * along) * s" for a in range(3)]
    body += ["y0 = one", "f0 = one - one", *recursion.lines(lmax, "y", "{c} * y{b} * n{a}")]
    body += recursion.lines(lmax, "f", "{c} * (f{b} * n{a} + y{b} * t{a})")
    body += [f"out[i, {m}] = f{m}" for m in range((lmax + 1) ** 2)]
    return compile_rows(("v", "dv", "out"), body, recursion.coefficients)


@lru_cache(maxsize=16)
def _gradient(lmax: int) -> RowKernel:
    recursion = _Recursion(lmax)
    body = ["one = k[0]", *_UNIT, "y0 = one", *recursion.lines(lmax, "y", "{c} * y{b} * n{a}")]
    body += [f"f{m} = f[i, {m}]" for m in range((lmax + 1) ** 2)]
    body += [f"t{a} = one - one" for a in range(3)]
    for l in range(lmax, 0, -1):
        for a in range(3):
            terms = [f"{c} * f{m} * y{b}" for b, axis, m, c in recursion.terms[l] if axis == a]
            body.append(f"t{a} += {' + '.join(terms)}")
        for b in range((l - 1) ** 2, l * l):
            terms = [f"{c} * f{m} * n{a}" for below, a, m, c in recursion.terms[l] if below == b]
            body.append(f"f{b} += {' + '.join(terms)}")
    body.append("along = n0 * t0 + n1 * t1 + n2 * t2")
    body += [f"out[i, {a}] = (t{a} - n{a} * along) * s" for a in range(3)]
    return compile_rows(("v", "f", "out"), body, recursion.coefficients)
