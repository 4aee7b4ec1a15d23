"""GPU kernels of spherical harmonics and their first and second derivatives: generated polynomials, lane = vector.

With ``u = v / |v|``, ``r_k`` the solid harmonics at u and ``A_ka = d r_k / d u_a``. A degree is the degree below
times u, ``r_k = sum_ia c_iak r_i u_a``, and the gradient needs the same coefficients: ``A_ka = l sum_i c_iak r_i``.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._triton import kernel, launch, plus, times
from .backends import self_check
from .harmonics_reference import raise_degree

AXES = "xyz"
BLOCK = 128


def harmonics(v: Tensor, lmax: int) -> Tensor:
    """Harmonics ``(E, (lmax+1)^2)`` of the directions of v ``(E, 3)``."""
    return _run("values", lmax, v.new_empty(v.shape[0], (lmax + 1) ** 2), v)


def tangent(v: Tensor, dv: Tensor, lmax: int) -> Tensor:
    """Change of the harmonics along dv ``(E, 3)``."""
    return _run("tangent", lmax, v.new_empty(v.shape[0], (lmax + 1) ** 2), v, dv)


def gradient(v: Tensor, f: Tensor, lmax: int) -> Tensor:
    """Gradient ``(E, 3)`` with respect to v of the sum of f ``(E, (lmax+1)^2)`` times the harmonics."""
    return _run("gradient", lmax, v.new_empty(v.shape[0], 3), v, f)


def second(v: Tensor, dv: Tensor, f: Tensor, lmax: int) -> Tensor:
    """Change of `gradient` along dv, which is its gradient contracted with dv: ``(E, 3)``."""
    return _run("second", lmax, v.new_empty(v.shape[0], 3), v, dv, f)


def _run(kind: str, lmax: int, out: Tensor, *inputs: Tensor) -> Tensor:
    if out.is_cuda:
        verify(lmax, out.dtype, out.device)
    return _launched(kind, lmax, out, *inputs)


@cache
def verify(lmax: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compare all kernels with the reference and its finite differences, once.

    Raises:
        RuntimeError: they disagree.
    """
    from .harmonics_reference import reference_harmonics

    n, generator = (lmax + 1) ** 2, torch.Generator().manual_seed(0)
    v, dv = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    f, step = torch.randn(8, n, generator=generator, dtype=torch.float64), 1e-4

    def found(kind: str, columns: int, *inputs: Tensor) -> Tensor:
        ready = [t.to(device, dtype) for t in inputs]
        return _launched(kind, lmax, ready[0].new_empty(8, columns), *ready).double().cpu()

    def check(kind: str, value: Tensor, expected: Tensor, tolerance: float) -> None:
        if float(expected.abs().max()) > 0:  # degree 0 has no derivatives
            self_check(f"spherical_harmonics ({kind})", "triton", value, expected, tolerance)

    def ahead(k: int) -> Tensor:
        return reference_harmonics(v + k * step * dv, lmax)

    change = found("tangent", n, v, dv)
    check("values", found("values", n, v), ahead(0), 1e-5)
    check("tangent", change, (ahead(1) - ahead(-1)) / (2 * step), 1e-4)
    check("gradient", (found("gradient", 3, v, f) * dv).sum(1), (change * f).sum(1), 1e-4)
    second = (found("second", 3, v, dv, f) * dv).sum(1)
    check("second", second, ((ahead(1) - 2 * ahead(0) + ahead(-1)) * f).sum(1) / step**2, 1e-4)


def _launched(kind: str, lmax: int, out: Tensor, *inputs: Tensor) -> Tensor:
    n = out.shape[0]
    arguments = (*(t.contiguous() for t in inputs), out, n)
    launch(build(kind, lmax), -(-n // BLOCK), arguments, num_warps=4, BLOCK=BLOCK)
    return out


@lru_cache(maxsize=64)
def build(kind: str, lmax: int) -> Any:
    """Kernel of one of the functions above."""
    n = (lmax + 1) ** 2
    arguments = {"values": ("v",), "tangent": ("v", "t"), "gradient": ("v", "g"), "second": ("v", "t", "g")}[kind]
    body = [
        "e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "inside = e < n_vectors",
        *(f"v{a} = tl.load(v + e * 3 + {i}, mask=inside, other=1.0)" for i, a in enumerate(AXES)),
    ]
    if "g" in arguments:
        body += [f"g{k} = tl.load(g + e * {n} + {k}, mask=inside, other=0.0)" for k in range(1, n)]
    if "t" in arguments:
        body += [f"t{a} = tl.load(t + e * 3 + {i}, mask=inside, other=0.0)" for i, a in enumerate(AXES)]
    body += ["s = 1.0 / tl.sqrt(vx * vx + vy * vy + vz * vz)", *(f"u{a} = v{a} * s" for a in AXES)]
    body += _solid(lmax)
    body += {"values": _values, "tangent": _tangent, "gradient": _gradient, "second": _second}[kind](lmax)
    return kernel(f"harmonics_{kind}", (*arguments, "out", "n_vectors"), ("BLOCK",), body)


@lru_cache(maxsize=16)
def _table(l: int) -> list[tuple[int, int, int, float]]:
    """(i, a, k, c): ``r_k = sum c r_i u_a``, i and k counted over all degrees."""
    c = raise_degree(l).reshape(2 * l - 1, 3, 2 * l + 1)
    found = np.argwhere(np.abs(c) > 1e-13).tolist()
    return [((l - 1) ** 2 + i, a, l * l + k, float(c[i, a, k])) for i, a, k in found]


def _solid(lmax: int) -> list[str]:
    lines = ["r0 = vx * 0.0 + 1.0"]
    for l in range(1, lmax + 1):
        for k in range(l * l, (l + 1) ** 2):
            terms = [times(c, f"r{i} * u{AXES[a]}") for i, a, to, c in _table(l) if to == k]
            lines.append(f"r{k} = {plus(terms)}")
    return lines


def _slope(k: int, a: int, lower: str = "r") -> str:
    """Code of ``A_ka``, or of its change where the solid harmonics change by `lower`."""
    l = int(k**0.5)
    terms = [(i, l * c) for i, axis, to, c in _table(l) if (to, axis) == (k, a) and (lower == "r" or i > 0)]
    return "(" + plus([times(c, f"{lower}{i}") for i, c in terms]) + ")" if terms else ""


def _along(k: int, tangent: str) -> str:
    """Code of ``sum_a A_ka tangent_a``."""
    return plus([f"{code} * {tangent}{axis}" for a, axis in enumerate(AXES) if (code := _slope(k, a))])


def _gathered(lmax: int, prefix: str, lower: str) -> list[str]:
    """Lines ``prefix_a = sum_k g_k A_ka``."""
    ks = range(1, (lmax + 1) ** 2)
    return [
        f"{prefix}{axis} = " + plus(["vx * 0.0", *(f"g{k} * {code}" for k in ks if (code := _slope(k, a, lower)))])
        for a, axis in enumerate(AXES)
    ]


def _radial(lmax: int, name: str, of: str) -> str:
    """Line ``name = sum_k l g_k of_k``: by Euler's theorem ``u . grad r_k = l r_k``."""
    ks = range(1, (lmax + 1) ** 2)
    return f"{name} = " + plus(["vx * 0.0", *(times(float(int(k**0.5)), f"g{k} * {of}{k}") for k in ks)])


def _store(values: list[str]) -> list[str]:
    return [f"tl.store(out + e * {len(values)} + {k}, {value}, mask=inside)" for k, value in enumerate(values)]


def _values(lmax: int) -> list[str]:
    return _store([f"r{k}" for k in range((lmax + 1) ** 2)])


def _turned(lmax: int) -> list[str]:
    """Lines: change w of u along t, and change h of the harmonics."""
    lines = ["d = " + plus([f"u{a} * t{a}" for a in AXES]), *(f"w{a} = (t{a} - u{a} * d) * s" for a in AXES)]
    return [*lines, "h0 = vx * 0.0", *(f"h{k} = {_along(k, 'w')}" for k in range(1, (lmax + 1) ** 2))]


def _tangent(lmax: int) -> list[str]:
    return _turned(lmax) + _store([f"h{k}" for k in range((lmax + 1) ** 2)])


def _gradient(lmax: int) -> list[str]:
    lines = [*_gathered(lmax, "p", "r"), _radial(lmax, "q", "r")]
    return lines + _store([f"(p{a} - u{a} * q) * s" for a in AXES])


def _second(lmax: int) -> list[str]:
    """The change of (p - u q) s along t, where s = 1/|v| changes by -d s^2."""
    lines = [*_turned(lmax), *_gathered(lmax, "p", "r"), _radial(lmax, "q", "r")]
    lines += [*_gathered(lmax, "b", "h"), _radial(lmax, "c", "h")]
    return lines + _store([f"(b{a} - w{a} * q - u{a} * c - d * s * (p{a} - u{a} * q)) * s" for a in AXES])
