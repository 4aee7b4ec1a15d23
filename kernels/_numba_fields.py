"""CPU kernels of `field_products` and its derivatives: short programs of Gaunt products, run node by node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

from torch import Tensor

from ._numba import CHUNKS, RowKernel, compile_rows, share_threads
from .gaunt import product_terms

ARGUMENTS = {
    "value": ("x", "out"),
    "gradient": ("x", "y", "out"),
    "tangent": ("x", "dx", "out"),
    "second": ("x", "dx", "y", "out"),
}


def run(program: str, out: Tensor, *inputs: Tensor) -> Tensor:
    """Run one of the programs in `ARGUMENTS` and return `out`."""
    x, low = inputs[0], out if program in ("value", "tangent") else inputs[-1]
    kernel = _compiled(program, isqrt(x.shape[1]) - 1, isqrt(low.shape[1]) - 1, x.shape[2] // 3)
    kernel(x.shape[0], CHUNKS * share_threads(), [*(t.flatten(1) for t in inputs), out.flatten(1)])
    return out


@dataclass(frozen=True)
class Field:
    """A field of a node inside a row of numbers.

    Attributes:
        row: name of the row.
        first: position of its first number.
        stride: distance between components.
        degree: largest degree.
    """

    row: str
    first: int
    stride: int
    degree: int


class _Program:
    """Writes products of fields with the same number of channels as calls of generated functions."""

    def __init__(self, channels: int):
        self.channels, self.size = channels, 0
        self.functions: dict[tuple[int, int, int, bool], list[str]] = {}
        self.lines: list[str] = []
        self.values: list[float] = []

    def scratch(self, degree: int) -> Field:
        """A field that lives as long as the node is treated."""
        field = Field("scratch", self.size, self.channels, degree)
        self.size += (degree + 1) ** 2 * self.channels
        return field

    def product(self, x: Field, y: Field, z: Field, *, add: bool = False) -> None:
        """``z = x y``, or ``z += x y``."""
        key = (x.degree, y.degree, z.degree, add)
        if key not in self.functions:
            self.functions[key] = self._function(*key)
        where = ", ".join(f"{f.row}, {f.first}, {f.stride}" for f in (x, y, z))
        self.lines.append(f"{_name(*key)}({where}, channels, k)")

    def copy(self, x: Field, z: Field, *, add: bool = False) -> None:
        """``z = x`` (or ``z += x``), up to the lower degree of both."""
        for k in range((min(x.degree, z.degree) + 1) ** 2):
            self.lines.append("for c in range(channels):")
            source, target = (
                f"{x.row}[{x.first + k * x.stride} + c]",
                f"{z.row}[{z.first + k * z.stride} + c]",
            )
            self.lines.append(f"    {target} {'+' if add else ''}= {source}")

    def _function(self, l1: int, l2: int, l3: int, add: bool) -> list[str]:
        sums: list[dict[int, list[str]]] = [{} for _ in range((l3 + 1) ** 2)]
        for i, j, k, value in product_terms(l1, l2, l3):
            if abs(value) not in self.values:
                self.values.append(abs(value))
            sign = "+" if value > 0 else "-"
            sums[k].setdefault(i, []).append(f"{sign} k{self.values.index(abs(value))} * y{j}")
        used = sorted({term.split()[1] for rows in sums for row in rows.values() for term in row})
        lines = ["@numba.njit(fastmath=True, error_model='numpy')"]
        lines.append(f"def {_name(l1, l2, l3, add)}(x, xa, xs, y, ya, ys, z, za, zs, n, k):")
        lines += [f"    {name} = k[{name[1:]}]" for name in used]
        lines.append("    for c in range(n):")
        lines += [f"        x{i} = x[xa + {i} * xs + c]" for i in range((l1 + 1) ** 2)]
        lines += [f"        y{j} = y[ya + {j} * ys + c]" for j in range((l2 + 1) ** 2)]
        for k, rows in enumerate(sums):
            total = " + ".join(f"x{i} * ({' '.join(row)})" for i, row in rows.items()) or "x0 - x0"
            lines.append(f"        z[za + {k} * zs + c] {'+' if add else ''}= {total}")
        return lines


def _name(l1: int, l2: int, l3: int, add: bool) -> str:
    return f"{'add' if add else 'set'}_{l1}_{l2}_{l3}"


@lru_cache(maxsize=64)
def _compiled(program: str, high: int, low: int, channels: int) -> RowKernel:
    p, c, middle = _Program(channels), channels, high + low
    u, v, w = (Field("xi", n * c, 3 * c, high) for n in range(3))
    du, dv, dw = (Field("dxi", n * c, 3 * c, high) for n in range(3))
    a, b = (Field("yi", n * c, 2 * c, low) for n in range(2))
    out = [Field("oi", n * c, 3 * c, high) for n in range(3)]
    value = [Field("oi", n * c, 2 * c, low) for n in range(2)]
    uv, t, dt = (p.scratch(middle) for _ in range(3))
    if program in ("value", "gradient", "tangent"):
        p.product(u, v, uv)
    if program == "value":
        p.copy(uv, value[0])
        p.product(uv, w, value[1])
    elif program == "gradient":
        p.product(uv, b, out[2])
        p.product(b, w, t)
        p.copy(a, t, add=True)
        p.product(t, v, out[0])
        p.product(t, u, out[1])
    elif program == "tangent":
        p.product(du, v, t)
        p.product(u, dv, t, add=True)
        p.copy(t, value[0])
        p.product(t, w, value[1])
        p.product(uv, dw, value[1], add=True)
    else:
        p.product(du, v, uv)
        p.product(u, dv, uv, add=True)
        p.product(uv, b, out[2])
        p.product(b, w, t)
        p.copy(a, t, add=True)
        p.product(b, dw, dt)
        p.product(t, dv, out[0])
        p.product(dt, v, out[0], add=True)
        p.product(t, du, out[1])
        p.product(dt, u, out[1], add=True)
    rows = [f"{'o' if name == 'out' else name}i = {name}[i]" for name in ARGUMENTS[program]]
    helpers = [line for function in p.functions.values() for line in function]
    # The number of channels is read from an array: as a literal it would unroll small loops, at minutes of compilation.
    width = 3 * (high + 1) ** 2
    first = [f"scratch = np.empty({p.size}, k.dtype)", f"channels = x.shape[1] // {width}"]
    return compile_rows(ARGUMENTS[program], rows + p.lines, p.values, helpers=helpers, first=first)
