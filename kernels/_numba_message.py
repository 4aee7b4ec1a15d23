"""CPU kernels of messages: one generated loop nest per coupling, no intermediate per edge and channel.

Every function takes CPU tensors, fills `out` and returns it. The loops over channels are straight-line code that the
compiler vectorises.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ._numba import CHUNKS, RowKernel, compile_rows, share_threads
from .coupling import Coupling, Term

Side = list[Tensor]


def message(
    x: Tensor, q: Tensor, dq: Tensor | None, w: Tensor, side: Side, out: Tensor, key: str, transposed: bool
) -> Tensor:
    """Messages from x, or their change along dq."""
    run = _message(key, w.shape[0], transposed, dq is not None)
    run(out.shape[0], CHUNKS * share_threads(), [x, q, q if dq is None else dq, w, *side, out])
    return out


def edge(z: Tensor, x: Tensor, q: Tensor, w: Tensor, side: Side, out: Tensor, key: str) -> Tensor:
    """Gradient of the form with respect to q."""
    run = _edge(key, w.shape[0])
    run(z.shape[0], CHUNKS * share_threads(), [z, x, q, w, *side, out])
    return out


def weight(z: Tensor, x: Tensor, q: Tensor, dq: Tensor | None, side: Side, out: Tensor, key: str) -> Tensor:
    """Gradient of the form with respect to the weights, or its change along dq."""
    run = _weight(key, out.shape[0], dq is not None)
    partial = out.new_zeros(share_threads(), *out.shape)
    run(z.shape[0], partial.shape[0], [z, x, q, q if dq is None else dq, *side, partial])
    return torch.sum(partial, 0, out=out)


def density(y: Tensor, g: Tensor, neighbours: Tensor, row_ptr: Tensor, out: Tensor, *, add: bool) -> Tensor:
    """Add (or write) the sums over neighbours of harmonics of y times radial functions of g."""
    n = out.shape[1]
    if not add:
        out.zero_()
    run = _density(n, y.shape[1] - n)
    run(out.shape[0], CHUNKS * share_threads(), [y, g, neighbours, row_ptr, out])
    return out


def density_edge(d: Tensor, q: Tensor, neighbours: Tensor, row_ptr: Tensor, out: Tensor) -> Tensor:
    """Gradient of the density form with respect to q."""
    run = _density_edge(d.shape[1], q.shape[1] - d.shape[1])
    run(d.shape[0], CHUNKS * share_threads(), [d, q, neighbours, row_ptr, out])
    return out


class _Source:
    """Writes the loops of one coupling.

    Args:
        coupling: paths and layout.
        n_radial: number of radial functions R.
    """

    def __init__(self, coupling: Coupling, n_radial: int):
        self.coupling, self.n_radial, self.n = coupling, n_radial, coupling.n_harmonics
        self.coefficients: list[float] = []

    def coefficient(self, value: float) -> str:
        """Code of a factor, with the sign of multiplication behind; nothing for 1."""
        if abs(value - 1.0) < 1e-14:
            return ""
        if value not in self.coefficients:
            self.coefficients.append(value)
        return f"k[{self.coefficients.index(value)}] * "

    def load(self, array: str, prefix: str) -> list[str]:
        """Lines that read one edge's harmonics and radial functions."""
        names = [f"{prefix}y{m}" for m in range(self.n)] + [f"{prefix}g{r}" for r in range(self.n_radial)]
        return [f"{name} = {array}[e, {column}]" for column, name in enumerate(names)]

    def weights(self, t: Term, prefix: str) -> str:
        """Expression of the radial weight of a channel."""
        return " + ".join(f"{prefix}g{r} * w[{r}, {t.w} + c]" for r in range(self.n_radial))

    def nonzero(self, t: Term) -> list[tuple[int, int, int, str]]:
        """(m1, m2, m3, code of the coefficient) of a path."""
        table = t.table
        indices = [
            (a, b, c)
            for a in range(table.shape[0])
            for b in range(table.shape[1])
            for c in range(table.shape[2])
            if abs(table[a, b, c]) > 1e-12
        ]
        return [(a, b, c, self.coefficient(float(table[a, b, c]))) for a, b, c in indices]

    def matrix(self, t: Term, prefix: str) -> tuple[list[str], dict[tuple[int, int], str]]:
        """Lines that couple one edge's harmonics into a matrix of scalars, and their names by (m1, m3)."""
        sums: dict[tuple[int, int], list[str]] = {}
        l2 = t.path.l2
        for m1, m2, m3, code in self.nonzero(t):
            sums.setdefault((m1, m3), []).append(f"{code}{prefix}y{l2 * l2 + m2}")
        names = {(m1, m3): f"{prefix}a{m1}_{m3}" for m1, m3 in sums}
        return [f"{names[key]} = {' + '.join(terms)}" for key, terms in sums.items()], names

    def products(self, t: Term) -> list[str]:
        """Lines t0, t1, ...: what multiplies each harmonic of the path, ``sum c x[m1] z[m3]`` of a channel."""
        sums: dict[int, list[str]] = {}
        for m1, m2, m3, code in self.nonzero(t):
            sums.setdefault(m2, []).append(f"{code}x{m1} * z{m3}")
        lines = [f"x{m} = a[{t.x + m * t.x_stride} + c]" for m in range(t.table.shape[0])]
        lines += [f"z{m} = b[{t.z + m * t.z_stride} + c]" for m in range(t.table.shape[2])]
        return lines + [f"t{m2} = {' + '.join(terms)}" for m2, terms in sums.items()]

    def contracted(self, t: Term, prefix: str) -> str:
        """Expression: harmonics of an edge times `products`."""
        l2 = t.path.l2
        return " + ".join(f"{prefix}y{l2 * l2 + m} * t{m}" for m in range(2 * l2 + 1))


def _per_edge(lines: list[str], *, sender: str = "x") -> list[str]:
    """Loop over the edges of row i; the sender's features are `a`."""
    inner = ["e = order[s]", f"a = {sender}[node[e]]", *lines]
    return ["for s in range(ptr[i], ptr[i + 1]):", *(f"    {line}" for line in inner)]


def _per_channel(t: Term, lines: list[str]) -> list[str]:
    # A short loop of known length would be unrolled, which takes the compiler minutes: hide the length.
    length = str(t.channels) if t.channels >= 16 else f"min({t.channels}, x.shape[1])"
    return [f"for c in range({length}):", *(f"    {line}" for line in lines)]


@lru_cache(maxsize=256)
def _message(key: str, n_radial: int, transposed: bool, tangent: bool) -> RowKernel:
    source = _Source(Coupling.from_key(key), n_radial)
    width = source.coupling.x_width if transposed else source.coupling.z_width
    body = source.load("q", "") + (source.load("dq", "d") if tangent else [])
    for t in source.coupling.terms:
        lines, matrix = source.matrix(t, "")
        body += lines
        if tangent:
            body += source.matrix(t, "d")[0]
        reads, writes = ((t.z, t.z_stride), (t.x, t.x_stride))[:: 1 if transposed else -1]
        pairs = {((m3, m1) if transposed else (m1, m3)): name for (m1, m3), name in matrix.items()}
        loop = [f"v = {source.weights(t, '')}"] + ([f"dv = {source.weights(t, 'd')}"] if tangent else [])
        for m in sorted({m for m, _ in pairs}):
            loop.append(f"u{m} = v * a[{reads[0] + m * reads[1]} + c]")
            if tangent:
                loop.append(f"du{m} = dv * a[{reads[0] + m * reads[1]} + c]")
        for m in sorted({m for _, m in pairs}):
            terms = [f"{name} * {'d' if tangent else ''}u{r}" for (r, to), name in pairs.items() if to == m]
            if tangent:
                terms += [f"d{name} * u{r}" for (r, to), name in pairs.items() if to == m]
            loop.append(f"o[{writes[0] + m * writes[1]} + c] += {' + '.join(terms)}")
        body += _per_channel(t, loop)
    rows = ["o = out[i]", f"for c in range({width}):", "    o[c] = 0.0", *_per_edge(body)]
    arguments = ("x", "q", "dq", "w", "ptr", "order", "node", "out")
    return compile_rows(arguments, rows, source.coefficients)


@lru_cache(maxsize=256)
def _edge(key: str, n_radial: int) -> RowKernel:
    source = _Source(Coupling.from_key(key), n_radial)
    n = source.n
    body = source.load("q", "")
    body += [f"fy{m} = zero" for m in range(n)] + [f"fg{r} = zero" for r in range(n_radial)]
    for t in source.coupling.terms:
        l2 = t.path.l2
        loop = source.products(t)
        loop += [f"v = {source.weights(t, '')}", f"f = {source.contracted(t, '')}"]
        loop += [f"fy{l2 * l2 + m} += v * t{m}" for m in range(2 * l2 + 1)]
        loop += [f"fg{r} += f * w[{r}, {t.w} + c]" for r in range(n_radial)]
        body += _per_channel(t, loop)
    body += [f"out[e, {m}] = fy{m}" for m in range(n)] + [f"out[e, {n + r}] = fg{r}" for r in range(n_radial)]
    rows = ["b = z[i]", f"zero = k[{len(source.coefficients)}]", *_per_edge(body)]
    return compile_rows(("z", "x", "q", "w", "ptr", "order", "node", "out"), rows, [*source.coefficients, 0.0])


@lru_cache(maxsize=256)
def _weight(key: str, n_radial: int, tangent: bool) -> RowKernel:
    source = _Source(Coupling.from_key(key), n_radial)
    body = source.load("q", "") + (source.load("dq", "d") if tangent else [])
    for t in source.coupling.terms:
        loop = [*source.products(t), f"f = {source.contracted(t, '')}"]
        if tangent:
            loop.append(f"df = {source.contracted(t, 'd')}")
        for r in range(n_radial):
            value = f"dg{r} * f + g{r} * df" if tangent else f"g{r} * f"
            loop.append(f"o[{r}, {t.w} + c] += {value}")
        body += _per_channel(t, loop)
    rows = ["b = z[i]", "o = out[part]", *_per_edge(body)]
    return compile_rows(("z", "x", "q", "dq", "ptr", "order", "node", "out"), rows, source.coefficients)


@lru_cache(maxsize=64)
def _density(n: int, n_radial: int) -> RowKernel:
    body = [f"y{m} = y[e, {m}]" for m in range(n)] + [f"first = neighbours[e] * {n_radial}"]
    loop = [f"v = g[e, {n} + r]"] + [f"out[i, {m}, first + r] += y{m} * v" for m in range(n)]
    body += [f"for r in range({n_radial}):", *(f"    {line}" for line in loop)]
    rows = ["for e in range(ptr[i], ptr[i + 1]):", *(f"    {line}" for line in body)]
    return compile_rows(("y", "g", "neighbours", "ptr", "out"), rows, [])


@lru_cache(maxsize=64)
def _density_edge(n: int, n_radial: int) -> RowKernel:
    body = [f"first = neighbours[e] * {n_radial}"]
    body += [f"y{m} = q[e, {m}]" for m in range(n)] + [f"f{m} = k[0]" for m in range(n)]
    loop = [f"g = q[e, {n} + r]"] + [f"d{m} = d[i, {m}, first + r]" for m in range(n)]
    loop += [f"f{m} += d{m} * g" for m in range(n)]
    loop.append(f"out[e, {n} + r] = {' + '.join(f'y{m} * d{m}' for m in range(n))}")
    body += [f"for r in range({n_radial}):", *(f"    {line}" for line in loop)]
    body += [f"out[e, {m}] = f{m}" for m in range(n)]
    rows = ["for e in range(ptr[i], ptr[i + 1]):", *(f"    {line}" for line in body)]
    return compile_rows(("d", "q", "neighbours", "ptr", "out"), rows, [0.0])
