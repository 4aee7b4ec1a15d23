"""GPU kernels of messages: generated straight-line code, lane = channel, a loop over the edges of a row, no atomics.

One program (a warp or a few) handles one row and one job: some of the paths of one source degree, for one block of
channels. Radial weights and sums stay in registers; per edge it reads the sender's channels of one degree and the
edge's harmonics and radial functions, which the row's other programs find in cache.

Bytes per edge and channel, float32, x not in cache, K = (L+1)^2, Z = sum over paths of (2 l3 + 1):
- `message`: 4 K read; sums of a row are written once, 4 Z. Adding with atomics instead would read and write 4 Z for
  every edge. Evaluating harmonics and radial functions here from the edge vector would save 4 (K + R - 3) bytes per
  edge (not per channel: 2 % of the 4 K C at L = 3, C = 64) and repeat their arithmetic for every job: they are read.
- transposed: 4 Z read. Rows of targets that add onto sources with atomics would move 8 K instead, a third at L = 3
  (Z = 99) and half at L = 2 (Z = 35). Not done: sums in an order that changes from run to run make forces that do not
  repeat bitwise, and whether atomics run at the speed of those bytes needs a GPU to be known.
- `edge`: 4 K read, 4 (K + R) written per edge and job; `weight`: 4 K read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._generated import module
from ._triton import HEADER, launch, plus, power_of_two, times
from .backends import self_check
from .coupling import Coupling, Term
from .message import reference_message
from .plan import GraphPlan

Side = list[Tensor]
_REGISTERS = 112  # 32-bit registers that the sums and weights of a job may take
_CHUNKS = 512  # slices of rows whose weight gradients are summed apart


class Job(NamedTuple):
    """Paths of one source degree, for one block of channels at a time."""

    terms: tuple[Term, ...]
    blocks: int


def message(
    x: Tensor, q: Tensor, dq: Tensor | None, w: Tensor, side: Side, out: Tensor, key: str, transposed: bool
) -> Tensor:
    """Messages from x, or their change along dq."""
    kernel = _checked("message", key, w.shape[0], out, transposed, dq is not None)
    arguments = [x, q, q if dq is None else dq, w, *side, out]
    return kernel.run(out.shape[0], arguments, out)


def edge(z: Tensor, x: Tensor, q: Tensor, w: Tensor, side: Side, out: Tensor, key: str) -> Tensor:
    """Gradient of the form with respect to q."""
    kernel = _checked("edge", key, w.shape[0], out, False, False)
    partial = out.new_empty(kernel.programs, *out.shape)
    kernel.run(z.shape[0], [z, x, q, w, *side, partial, out.numel()], out)
    return torch.sum(partial, 0, out=out)


def weight(z: Tensor, x: Tensor, q: Tensor, dq: Tensor | None, side: Side, out: Tensor, key: str) -> Tensor:
    """Gradient of the form with respect to the weights, or its change along dq."""
    kernel = _checked("weight", key, out.shape[0], out, False, dq is not None)
    n = z.shape[0]
    per_chunk = max(1, -(-n // _CHUNKS))
    chunks = -(-n // per_chunk)
    partial = out.new_empty(chunks, *out.shape)
    kernel.run(chunks, [z, x, q, q if dq is None else dq, *side, partial, n, per_chunk], out)
    return torch.sum(partial, 0, out=out)


def _checked(kind: str, key: str, n_radial: int, out: Tensor, transposed: bool, tangent: bool) -> Kernel:
    chosen = (kind, key, n_radial, out.dtype, transposed, tangent)
    if out.is_cuda:
        verify(*chosen, out.device)
    return build(*chosen)


@lru_cache(maxsize=1024)
def verify(
    kind: str,
    key: str,
    n_radial: int,
    dtype: torch.dtype,
    transposed: bool,
    tangent: bool,
    device: torch.device,
) -> None:
    """Compare a kernel with the reference, once: the form S, contracted with whatever the kernel leaves open.

    Raises:
        RuntimeError: they disagree.
    """
    coupling, generator = Coupling.from_key(key), torch.Generator().manual_seed(0)
    index = torch.tensor([[1, 2, 0, 1, 1], [0, 0, 2, 2, 2]], device=device)
    plan = GraphPlan.build(index, torch.tensor([0, 2, 2, 5], device=device))
    n, wide = coupling.n_harmonics, coupling.n_harmonics + n_radial
    shapes = [
        (3, coupling.z_width),
        (3, coupling.x_width),
        (5, wide),
        (5, wide),
        (n_radial, coupling.n_weights),
    ]
    z, x, q, dq, w = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
    mixed = [torch.cat([dq[:, :n], q[:, n:]], 1), torch.cat([q[:, :n], dq[:, n:]], 1)]
    functions = mixed if tangent or kind == "edge" else [q]
    expected = [z * reference_message(x, f, w, plan, coupling) for f in functions]
    change, rows, columns = dq if tangent else None, plan.rows.tensors, plan.columns.tensors
    kernel = build(kind, key, n_radial, dtype, transposed, tangent)
    if kind == "edge":
        partial = q.new_empty(kernel.programs, *q.shape)
        kernel.run(3, [z, x, q, w, *rows, partial, q.numel()], q)
        found = dq * partial.sum(0)
    elif kind == "weight":
        partial = w.new_empty(3, *w.shape)
        kernel.run(3, [z, x, q, q if change is None else change, *rows, partial, 3, 1], w)
        found = w * partial.sum(0)
    else:
        read, kept, side = (z, x, columns) if transposed else (x, z, rows)
        arguments = [read, q, q if change is None else change, w, *side, out := torch.empty_like(kept)]
        found = kept * kernel.run(3, arguments, out)
    size = float(torch.cat(expected).double().norm())  # what the sum of terms of random signs comes to
    difference = float(found.double().sum() - sum(e.double().sum() for e in expected)) / size
    ones = torch.ones(1, dtype=dtype)
    self_check(f"message ({kind}, {key})", "triton", ones + difference, ones)


class Kernel:
    """A generated kernel with its launch shape.

    Args:
        source: the module, with a function ``rows``.
        jobs: what the programs of a row do.
        block: channels per program.
    """

    def __init__(self, source: str, jobs: Sequence[Job], block: int):
        self.function = module(source).rows
        self.programs, self.block = sum(job.blocks for job in jobs), block

    def run(self, rows: int, arguments: list[Any], out: Tensor) -> Tensor:
        """Launch the programs of this many rows."""
        ready = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in arguments)
        launch(self.function, rows * self.programs, ready, num_warps=max(1, self.block // 32), BLOCK=self.block)
        return out


@lru_cache(maxsize=256)
def build(kind: str, key: str, n_radial: int, dtype: torch.dtype, transposed: bool, tangent: bool) -> Kernel:
    """Generate a kernel.

    Args:
        kind: "message", "edge" or "weight".
        key: the coupling's key.
        n_radial: number of radial functions R.
        dtype: of the tensors; wider numbers take more registers, so fewer paths share a program.
        transposed: whether messages run backwards, from messages to source features.
        tangent: whether the change along dq is wanted.
    """
    coupling = Coupling.from_key(key)
    source = _Source(coupling, n_radial, transposed, tangent)
    # Sums over channels (kind "edge") want all channels of a path in one program, all others one channel per lane.
    block = min(power_of_two(max(*coupling.channels, 16)), 128 if kind == "edge" else 32)
    room = _REGISTERS * 4 // dtype.itemsize
    arguments, write, cost = {
        "message": ("x, q, dq, w, ptr, order, node, out", source.message, source.message_cost),
        "edge": ("z, x, q, w, ptr, order, node, out, out_size", source.edge, source.weight_cost),
        "weight": (
            "z, x, q, dq, ptr, order, node, out, n_rows, per_chunk",
            source.weight,
            source.weight_cost,
        ),
    }[kind]
    jobs = _jobs(coupling, block, room, cost, whole_degrees=kind == "message" and transposed)
    lines = [*HEADER]
    for number, job in enumerate(jobs):
        body = ["c = block * BLOCK + tl.arange(0, BLOCK)", f"inside = c < {job.terms[0].channels}"]
        body += write(job, room)
        lines += _function(f"job{number}(i, block, part, {arguments}, BLOCK: tl.constexpr)", body)
    programs, calls, first = sum(j.blocks for j in jobs), list[str](), 0
    for number, job in enumerate(jobs):
        test = "if" if number == 0 else "elif"
        calls.append(f"{test} part < {first + job.blocks}:")
        calls.append(f"    job{number}(i, part - {first}, part, {arguments}, BLOCK)")
        first += job.blocks
    start = [f"i = (tl.program_id(0) // {programs}).to(tl.int64)", f"part = tl.program_id(0) % {programs}"]
    lines += _function(f"rows({arguments}, BLOCK: tl.constexpr)", [*start, *calls])
    return Kernel("\n".join(lines) + "\n", jobs, block)


def _function(head: str, body: list[str]) -> list[str]:
    return ["", "", "@triton.jit", f"def {head}:", *(f"    {line}" for line in body)]


def _indent(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _jobs(coupling: Coupling, block: int, room: int, cost: Any, *, whole_degrees: bool) -> list[Job]:
    jobs = []
    for l1 in sorted({t.path.l1 for t in coupling.terms}):
        # Neighbours in l2 share products with the harmonics.
        terms = sorted((t for t in coupling.terms if t.path.l1 == l1), key=lambda t: (t.path.l2, t.path.l3))
        blocks = -(-terms[0].channels // block)
        groups = [tuple(terms)] if whole_degrees else _packed(terms, room, cost)
        jobs += [Job(group, blocks) for group in groups]
    return jobs


def _packed(terms: Sequence[Term], room: int, cost: Any) -> list[tuple[Term, ...]]:
    """Consecutive groups of paths, none dearer than the room unless it is a single path."""
    groups: list[list[Term]] = []
    left = 0
    for t in terms:
        if not groups or cost(t) > left:
            groups.append([])
            left = room
        groups[-1].append(t)
        left -= cost(t)
    return [tuple(group) for group in groups]


class _Source:
    """Writes the lines of jobs.

    Args:
        coupling: paths and layout.
        n_radial: number of radial functions R.
        transposed, tangent: see `build`.
    """

    def __init__(self, coupling: Coupling, n_radial: int, transposed: bool, tangent: bool):
        self.coupling, self.n_radial, self.n = coupling, n_radial, coupling.n_harmonics
        self.transposed, self.tangent = transposed, tangent

    def message_cost(self, t: Term) -> int:
        """Registers per lane of a path: its weights, and its sums or what it reads."""
        return self.n_radial + 2 * t.path.l3 + 1

    def weight_cost(self, t: Term) -> int:
        """The same where gradients with respect to the weights, and the path's cotangent, are held."""
        return self.n_radial + 2 * t.path.l3 + 1

    # --- pieces

    def loop(self, lines: list[str]) -> list[str]:
        """Lines of every edge e with sender j of a row; both are found one turn ahead, to hide the wait."""
        turn = [*lines, "e = next_e", "j = next_j"]
        return [*self.find("", "start", "start < end"), "for s in range(start, end):", *_indent(turn)]

    def find(self, prefix: str, s: str, condition: str) -> list[str]:
        """Lines that look up the edge at position s of the row's list, and its sender."""
        ready = f", mask={condition}, other=0" if condition != "True" else ""
        e = f"tl.load(order + {s}{ready})" if self.transposed else s  # edges are sorted by target
        return [f"{prefix}e = {e}", f"{prefix}j = tl.load(node + {prefix}e{ready})"]

    def read_edge(self, terms: Sequence[Term]) -> list[str]:
        """Lines that read the functions of edge e and look up the edge and the sender that come next."""
        lines = ["following = tl.minimum(s + 1, end - 1)", *self.find("next_", "following", "True")]
        lines.append(f"qe = q + e * {self.n + self.n_radial}")
        prefixes = [("", "qe")]
        if self.tangent:
            lines.append(f"dqe = dq + e * {self.n + self.n_radial}")
            prefixes.append(("d", "dqe"))
        columns = sorted({t.path.l2 for t in terms})
        for prefix, pointer in prefixes:
            for l2 in columns:
                lines += [f"{prefix}y{k} = tl.load({pointer} + {k})" for k in range(l2 * l2, (l2 + 1) ** 2)]
            lines += [f"{prefix}g{r} = tl.load({pointer} + {self.n + r})" for r in range(self.n_radial)]
        return lines

    def read_weights(self, terms: Sequence[Term]) -> list[str]:
        """Lines that read the radial weights of the channels."""
        return [
            f"w{p}_{r} = tl.load(w + {r * self.coupling.n_weights + t.w} + c, mask=inside, other=0.0)"
            for p, t in enumerate(terms)
            for r in range(self.n_radial)
        ]

    def radial(self, p: int, prefix: str) -> str:
        """Expression of the radial weight of a path, per channel."""
        return plus([f"{prefix}g{r} * w{p}_{r}" for r in range(self.n_radial)])

    def read(self, name: str, array: str, row: str, width: int, first: int, stride: int, n: int) -> list[str]:
        """Lines that read n components of one row's channels."""
        return [
            f"{name}{m} = tl.load({array} + {row} * {width} + {first + m * stride} + c, mask=inside, other=0.0)"
            for m in range(n)
        ]

    def read_x(self, t: Term) -> list[str]:
        return self.read("a", "x", "j", self.coupling.x_width, t.x, t.x_stride, 2 * t.path.l1 + 1)

    def read_z(self, terms: Sequence[Term], array: str, row: str) -> list[str]:
        width = self.coupling.z_width
        return [
            line
            for p, t in enumerate(terms)
            for line in self.read(f"z{p}_", array, row, width, t.z, t.z_stride, 2 * t.path.l3 + 1)
        ]

    # --- kinds

    def message(self, job: Job, room: int) -> list[str]:
        """Messages of row i; backwards, all paths of a degree add to the same sums, group by group."""
        lines = ["start = tl.load(ptr + i)", "end = tl.load(ptr + i + 1)"]
        t = job.terms[0]
        if self.transposed:
            sums = [f"u{m}" for m in range(2 * t.path.l1 + 1)]
            groups = _packed(job.terms, room, self.message_cost)
            stores = [(f"u{m}", self.coupling.x_width, t.x + m * t.x_stride) for m in range(len(sums))]
        else:
            groups = [job.terms]
            stores = [
                (f"u{p}_{m}", self.coupling.z_width, t.z + m * t.z_stride)
                for p, t in enumerate(job.terms)
                for m in range(2 * t.path.l3 + 1)
            ]
        lines += [f"{name} = tl.full([BLOCK], 0.0, out.dtype.element_ty)" for name, *_ in stores]
        for terms in groups:
            inner = self.read_edge(terms)
            inner += self.backward(terms) if self.transposed else self.forward(terms)
            lines += [*self.read_weights(terms), *self.loop(inner)]
        return lines + [
            f"tl.store(out + i * {width} + {first} + c, {name}, mask=inside)" for name, width, first in stores
        ]

    def forward(self, terms: Sequence[Term]) -> list[str]:
        """One edge's lines: ``u{p}_{m3} += v_p sum c a_{m1} y_{m2}``, or its change."""
        lines, known = self.read_x(terms[0]), set[str]()
        for p, t in enumerate(terms):
            n1, l2 = 2 * t.path.l1 + 1, t.path.l2
            ks = range(l2 * l2, (l2 + 1) ** 2)
            lines.append(f"v = {self.radial(p, '')}")
            if self.tangent:  # the weight goes into the pairs, so that one coupling does for both changes
                lines.append(f"dv = {self.radial(p, 'd')}")
                lines += [f"v{m} = v * a{m}" for m in range(n1)] + [f"dv{m} = dv * a{m}" for m in range(n1)]
                lines += [f"b{m}_{k} = v{m} * dy{k} + dv{m} * y{k}" for m in range(n1) for k in ks]
            else:
                lines += [f"b{m}_{k} = a{m} * y{k}" for m in range(n1) for k in ks if f"b{m}_{k}" not in known]
                known |= {f"b{m}_{k}" for m in range(n1) for k in ks}
            for m3 in range(2 * t.path.l3 + 1):
                terms_of = [times(c, f"b{m1}_{l2 * l2 + m2}") for m1, m2, to, c in nonzero(t) if to == m3]
                lines.append(f"u{p}_{m3} += " + (plus(terms_of) if self.tangent else f"v * ({plus(terms_of)})"))
        return lines

    def backward(self, terms: Sequence[Term]) -> list[str]:
        """One edge's lines: ``u{m1} += v_p sum c y_{m2} z_{m3}``, or its change."""
        lines = self.read_z(terms, "x", "j")
        for p, t in enumerate(terms):
            l2 = t.path.l2
            lines.append(f"v = {self.radial(p, '')}")
            if self.tangent:
                lines.append(f"dv = {self.radial(p, 'd')}")
                lines += [f"b{m2} = v * dy{l2 * l2 + m2} + dv * y{l2 * l2 + m2}" for m2 in range(2 * l2 + 1)]
            else:
                lines += [f"b{m2} = v * y{l2 * l2 + m2}" for m2 in range(2 * l2 + 1)]
            pairs = sorted({(m2, m3) for _, m2, m3, _ in nonzero(t)})
            lines += [f"b{m2}_{m3} = b{m2} * z{p}_{m3}" for m2, m3 in pairs]
            for m1 in range(2 * t.path.l1 + 1):
                terms_of = [times(c, f"b{m2}_{m3}") for to, m2, m3, c in nonzero(t) if to == m1]
                lines.append(f"u{m1} += {plus(terms_of)}")
        return lines

    def products(self, p: int, t: Term) -> list[str]:
        """Lines t0, t1, ...: what multiplies each harmonic of the path, ``sum c a_{m1} z_{m3}``."""
        pairs = sorted({(m1, m3) for m1, _, m3, _ in nonzero(t)})
        lines = [f"b{m1}_{m3} = a{m1} * z{p}_{m3}" for m1, m3 in pairs]
        for m2 in range(2 * t.path.l2 + 1):
            terms_of = [times(c, f"b{m1}_{m3}") for m1, to, m3, c in nonzero(t) if to == m2]
            lines.append(f"t{m2} = {plus(terms_of)}")
        return lines

    def contracted(self, t: Term, prefix: str) -> str:
        """Expression: harmonics of the edge times `products`."""
        l2 = t.path.l2
        return plus([f"{prefix}y{l2 * l2 + m} * t{m}" for m in range(2 * l2 + 1)])

    def edge(self, job: Job, room: int) -> list[str]:
        """Gradients with respect to the functions of the edges of row i, summed over the job's channels."""
        inner = self.read_edge(job.terms) + self.read_x(job.terms[0])
        started = set[str]()
        for p, t in enumerate(job.terms):
            l2 = t.path.l2
            inner += [*self.products(p, t), f"v = {self.radial(p, '')}", f"f = {self.contracted(t, '')}"]
            added = [(f"s{l2 * l2 + m}", f"v * t{m}") for m in range(2 * l2 + 1)]
            added += [(f"s{self.n + r}", f"f * w{p}_{r}") for r in range(self.n_radial)]
            inner += [f"{name} {'+=' if name in started else '='} {code}" for name, code in added]
            started |= {name for name, _ in added}
        columns = self.n + self.n_radial
        width = power_of_two(columns)
        inner.append("zero = a0 * 0.0")
        names = [f"s{k}" if f"s{k}" in started else "zero" for k in range(width)]
        inner.append(f"sums = tl.sum(tl.reshape({_joined(names)}, [BLOCK, {width}]), axis=0)")
        inner.append(
            f"tl.store(out + part.to(tl.int64) * out_size + e * {columns} + column, sums, mask=column < {columns})"
        )
        lines = ["start = tl.load(ptr + i)", "end = tl.load(ptr + i + 1)", f"column = tl.arange(0, {width})"]
        lines += [*self.read_weights(job.terms), *self.read_z(job.terms, "z", "i")]
        return [*lines, *self.loop(inner)]

    def weight(self, job: Job, room: int) -> list[str]:
        """Gradients with respect to the weights, summed over the rows of chunk i."""
        inner = self.read_edge(job.terms) + self.read_x(job.terms[0])
        for p, t in enumerate(job.terms):
            inner += [*self.products(p, t), f"f = {self.contracted(t, '')}"]
            if self.tangent:
                inner.append(f"df = {self.contracted(t, 'd')}")
            for r in range(self.n_radial):
                inner.append(f"u{p}_{r} += " + (f"dg{r} * f + g{r} * df" if self.tangent else f"g{r} * f"))
        rows = ["start = tl.load(ptr + row)", "end = tl.load(ptr + row + 1)"]
        rows += [*self.read_z(job.terms, "z", "row"), *self.loop(inner)]
        names = [(p, r) for p in range(len(job.terms)) for r in range(self.n_radial)]
        lines = [f"u{p}_{r} = tl.full([BLOCK], 0.0, out.dtype.element_ty)" for p, r in names]
        lines += ["first = i * per_chunk", "last = tl.minimum(first + per_chunk, n_rows)"]
        lines += ["for row in range(first, last):", *_indent(rows)]
        size, columns = self.n_radial * self.coupling.n_weights, self.coupling.n_weights
        return lines + [
            f"tl.store(out + i * {size} + {r * columns + job.terms[p].w} + c, u{p}_{r}, mask=inside)" for p, r in names
        ]


@lru_cache(maxsize=4096)
def _nonzero(l1: int, l2: int, l3: int, values: tuple[float, ...]) -> list[tuple[int, int, int, float]]:
    table = np.array(values).reshape(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1)
    return [(a, b, c, float(table[a, b, c])) for a, b, c in np.argwhere(np.abs(table) > 1e-12).tolist()]


def nonzero(t: Term) -> list[tuple[int, int, int, float]]:
    """(m1, m2, m3, coefficient) of a path."""
    return _nonzero(t.path.l1, t.path.l2, t.path.l3, tuple(t.table.ravel().tolist()))


def _joined(names: list[str]) -> str:
    """Code that stacks vectors along new axes of 2; flattened, they come in the order of the names."""
    if len(names) == 1:
        return names[0]
    return f"tl.join({_joined(names[0::2])}, {_joined(names[1::2])})"
