"""`python -m tesseral.scripts.bench.gpu`: every kernel on the GPU, first right, then how far from the roofline.

Needs torch, numpy, triton and cupy only. A source tree that is not installed is found through a folder with a link to
it: ``mkdir py; ln -s "$PWD" py/tesseral; PYTHONPATH=py python -m tesseral.scripts.bench.gpu -o gpu.json``.

Compares values, gradients and second derivatives of every operation with the reference in float64, then times the
kernels against the bytes that they must move at the bandwidth of a plain copy, measured in the same run. Last come
whole steps of small systems, with and without a CUDA graph (`gpu_steps`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOLERANCES = {torch.float64: (1e-12, 1e-10, 1e-10), torch.float32: (1e-5, 3e-5, 1e-4)}  # value, first, second


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    nodes: int = 25_000
    neighbours: int = 40
    many: int = 10_000  # neighbours of one node in the correctness part
    degrees: tuple[int, ...] = (2, 3)
    channels: tuple[int, ...] = (64, 128)
    checked: tuple[tuple[int, ...], ...] = ((5, 3), (40, 100, 8), (33, 16, 8, 4))
    parities: tuple[str, ...] = ("o3", "so3")
    harmonics: tuple[int, ...] = (1, 3, 6)
    products: tuple[int, ...] = (1, 2, 3, 4)
    fields: int = 10_000
    grid: tuple[int, int] = (10, 20)
    radial: int = 8
    repeats: int = 20


REHEARSAL = Sizes(2, 1, 3, (1,), (2,), ((2, 1),), ("so3",), (1,), (1,), 2, (2, 4), 1, 1)


def main(argv: list[str] | None = None) -> int:
    """Run all and return 0 if every result is right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="record to write")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="tiny sizes on the CPU in Triton's interpreter, numbers mean nothing",
    )
    args = parser.parse_args(argv)
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("no CUDA device: this benchmark is for a GPU (--rehearse tries it without one)")
    device, sizes = ("cpu", REHEARSAL) if args.rehearse else ("cuda", Sizes())
    from ...kernels import use_backend
    from .gpu_steps import steps

    record: dict[str, Any] = {"machine": machine(device), "sizes": asdict(sizes)}
    with use_backend("triton") if args.rehearse else nullcontext():
        record["correctness"] = list(correctness(device, sizes))
        record["timings"] = list(timings(device, sizes))
    with use_backend("reference") if args.rehearse else nullcontext():
        rows = list(steps(device, 5 * sizes.repeats))
    record["correctness"] += [row for row in rows if "right" in row]
    record["steps"] = [row for row in rows if "right" not in row]
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    wrong = [row for row in record["correctness"] if not row["right"]]
    print(f"\n{len(record['correctness'])} comparisons, {len(wrong)} wrong")
    return 1 if wrong else 0


def machine(device: str) -> dict[str, Any]:
    """What the record is of."""
    import triton

    from .machine import commit

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU (rehearsal)"
    return {"device": name, "torch": torch.__version__, "triton": triton.__version__, "commit": commit()}


# --- correctness ---------------------------------------------------------------------------------------------


def correctness(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """One row per operation, case, dtype and order of derivative."""
    from ...kernels import explain, use_backend

    print(f"{'operation':44} {'dtype':8} {'value':>9} {'first':>9} {'second':>9}")
    for name, operation, function, arguments in cases(device, sizes):
        for dtype, tolerances in TOLERANCES.items():
            if operation == "grid_mlp" and dtype == torch.float64:
                continue  # runs on plain torch
            exact = derivatives(function, [a.double() for a in arguments], reference=use_backend)
            found = derivatives(function, [a.to(dtype) for a in arguments])
            errors = [relative_error(a, b) for a, b in zip(found, exact, strict=True)]
            right = [e <= t for e, t in zip(errors, tolerances, strict=True)]
            marked = [f"{e:.1e}{'' if ok else ' !'}" for e, ok in zip(errors, right, strict=True)]
            print(f"{name:44} {str(dtype)[6:]:8} " + " ".join(f"{m:>9}" for m in marked), flush=True)
            kind = explain(operation, arguments[0].to(dtype))
            for order, error, ok in zip(("value", "first", "second"), errors, right, strict=True):
                yield {
                    "operation": name, "backend": kind, "order": order, "error": error, "right": ok
                }  # fmt: skip
    yield from repeats_bitwise(device, sizes)


Case = tuple[str, str, Callable[..., Tensor], list[Tensor]]


def cases(device: str, sizes: Sizes) -> Iterator[Case]:
    """(name, operation, function, float64 arguments) of everything that has GPU kernels."""
    from ...kernels.gaunt import gaunt_product
    from ...kernels.harmonics import spherical_harmonics
    from ...kernels.message import message
    from ...kernels.sphere import gauss_legendre_grid, grid_mlp

    for lmax in sizes.harmonics:
        yield (
            f"harmonics L={lmax}",
            "spherical_harmonics",
            lambda v, l=lmax: spherical_harmonics(v, l),
            [normal(device, 50, 3)],
        )
    for lmax in sizes.products:
        shape = (7, (lmax + 1) ** 2, 45)
        fields = [normal(device, *shape), normal(device, *shape, seed=1)]
        yield f"gaunt product L={lmax}", "gaunt_product", lambda x, y, l=lmax: gaunt_product(x, y, l), fields
    graphs = {"ragged": [4, 0, 3, 1], "many neighbours": [sizes.many, 2], "no edges": [0, 0]}
    for channels in sizes.checked:
        for parity in sizes.parities:
            for graph, degrees in graphs.items():
                if graph != "ragged" and channels != sizes.checked[0]:
                    continue
                plan, coupling = random_graph(degrees, device), coupled(channels, parity)
                arguments = message_arguments(plan, coupling, sizes, device)
                yield (
                    f"message {channels} {parity} {graph}",
                    "message",
                    (lambda x, q, w, p=plan, c=coupling: message(x, q, w, p, c)),
                    arguments,
                )
    grid = gauss_legendre_grid(3, *sizes.grid).to(device)
    for heads, hidden in ((2, 16), (1, 20)):
        width = 24 // heads
        shapes = [(5, 16, 24), (width, hidden), (hidden, width), (hidden,), (width,)]
        arguments = [normal(device, *s, seed=k) * (0.3 if k else 1.0) for k, s in enumerate(shapes)]
        yield (
            f"grid network {heads} heads, hidden {hidden}",
            "grid_mlp",
            (lambda x, a, b, c, d, h=heads: grid_mlp(x, grid, (a, b), biases=(c, d), heads=h)),
            arguments,
        )


def derivatives(function: Callable[..., Tensor], arguments: list[Tensor], reference: Any = None) -> list[list[Tensor]]:
    """Value, gradients, and gradients of a random combination of the gradients."""
    with reference("reference") if reference else nullcontext():
        arguments = [a.detach().requires_grad_() for a in arguments]
        value = function(*arguments)
        seed = normal(value.device, *value.shape, seed=20).to(value.dtype).requires_grad_()
        first = torch.autograd.grad(value, arguments, seed, create_graph=True)
        others = [normal(g.device, *g.shape, seed=21 + k).to(g.dtype) for k, g in enumerate(first)]
        second = torch.autograd.grad(first, (seed, *arguments), others, allow_unused=True)
        return [[value], list(first), [g for g in second if g is not None]]


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Largest error, relative to the largest value, over several tensors."""
    worst = 0.0
    for a, b in zip(found, exact, strict=True):
        if b.numel():
            scale = float(b.detach().abs().max()) or 1.0
            worst = max(worst, float((a.double() - b).detach().abs().max()) / scale)
    return worst


def repeats_bitwise(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Messages and their gradients, twice: every bit the same."""
    from ...kernels.message import message

    plan, coupling = random_graph([sizes.neighbours] * 5, device), coupled(sizes.checked[0], "o3")
    arguments = [a.float() for a in message_arguments(plan, coupling, sizes, device)]
    one, two = (derivatives(lambda x, q, w: message(x, q, w, plan, coupling), arguments) for _ in range(2))
    same = all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    print(f"messages repeat bitwise: {same}", flush=True)
    yield {"operation": "message", "order": "repeats bitwise", "right": same}


# --- timings -------------------------------------------------------------------------------------------------


def timings(device: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """One row per kernel and size: milliseconds, bytes that must move, and time over the roofline."""
    bandwidth = copy_bandwidth(device, sizes)
    print(f"\ncopy bandwidth {bandwidth / 1e9:.0f} GB/s")
    print(f"{'kernel':40} {'ms':>9} {'GB':>8} {'roof ms':>8} {'x roof':>7} {'first call s':>12}")
    for name, run, volume in workloads(device, sizes):
        start = time.perf_counter()
        run()
        synchronize(device)
        first = time.perf_counter() - start
        ms = median_ms(run, device, sizes.repeats)
        roof = 1e3 * volume / bandwidth
        print(f"{name:40} {ms:9.3f} {volume / 1e9:8.2f} {roof:8.3f} {ms / roof:7.2f} {first:12.1f}", flush=True)
        yield {"kernel": name, "ms": ms, "bytes": volume, "roof_ms": roof, "first_call_s": first}


Workload = tuple[str, Callable[[], Any], float]


def workloads(device: str, sizes: Sizes) -> Iterator[Workload]:
    """(name, function, bytes)."""
    for lmax in sizes.degrees:
        for channels in sizes.channels:
            yield from message_workloads(device, sizes, lmax, channels)
    for lmax in sizes.degrees:
        yield from harmonics_workloads(device, sizes, lmax)
        yield from product_workloads(device, sizes, lmax)
        yield from grid_workloads(device, sizes, lmax)


def message_workloads(device: str, sizes: Sizes, lmax: int, channels: int) -> Iterator[Workload]:
    """The operators of the family, then forward, backward and double backward as autograd runs them.

    Bytes: every edge reads its functions (K + R numbers), a node number, and the features of its far end once, as if
    no cache held them (they do not fit one at these sizes: 2 to 5 times the second-level cache); rows are read or
    written once.
    """
    from ...kernels import message_ops as ops
    from ...kernels.message import message

    plan, coupling = (
        random_graph([sizes.neighbours] * sizes.nodes, device),
        coupled((channels,) * (lmax + 1), "o3"),
    )
    x, q, w = (a.float() for a in message_arguments(plan, coupling, sizes, device))
    z, dq = normal(device, sizes.nodes, coupling.z_width).float(), torch.randn_like(q)
    n_edges, functions = q.shape[0], 4 * q.shape[1]
    gather_x, gather_z = n_edges * 4 * coupling.x_width, n_edges * 4 * coupling.z_width
    edges, rows_x, rows_z = n_edges * (functions + 8), x.numel() * 4, z.numel() * 4
    forward, edge, weight = (
        gather_x + edges + rows_z,
        gather_x + 2 * edges + rows_z,
        gather_x + edges + rows_z,
    )
    back = gather_z + edges + 8 * n_edges + rows_x
    more = n_edges * functions  # dq
    graph = (plan.rows.tensors, plan.columns.tensors, coupling.key)
    name = f"L={lmax} C={channels} "
    with torch.no_grad():
        yield name + "message", lambda: ops.message_op(x, q, w, *graph, False), forward
        yield name + "transposed", lambda: ops.message_op(z, q, w, *graph, True), back
        yield name + "tangent", lambda: ops.message_tangent(x, q, dq, w, *graph, False), forward + more
        yield name + "transposed tangent", lambda: ops.message_tangent(z, q, dq, w, *graph, True), back + more
        yield name + "edge", lambda: ops.message_edge(z, x, q, w, *graph), edge
        yield name + "weight", lambda: ops.message_weight(z, x, q, w, *graph), weight
        yield (
            name + "weight tangent",
            lambda: ops.message_weight_tangent(z, x, q, dq, w, *graph),
            weight + more,
        )
    leaves = [t.clone().requires_grad_() for t in (x, q, w)]
    seed = z.clone().requires_grad_()
    value = message(leaves[0], leaves[1], leaves[2], plan, coupling)
    yield (
        name + "backward (x, edges, weights)",
        (lambda: torch.autograd.grad(value, leaves, z, retain_graph=True)),
        back + edge + weight,
    )
    first = torch.autograd.grad(value, leaves[:2], seed, create_graph=True)
    others = [torch.randn_like(g) for g in first]
    # Of the transposed message: message, edge, weight. Of the edge gradient: both tangents, two edges, weight tangent.
    double = forward + edge + weight + (forward + more) + (back + more) + 2 * edge + (weight + more)
    yield (
        name + "double backward",
        (lambda: torch.autograd.grad(first, (seed, *leaves), others, retain_graph=True)),
        double,
    )


def harmonics_workloads(device: str, sizes: Sizes, lmax: int) -> Iterator[Workload]:
    """Values and derivatives of the harmonics of all edges."""
    from ...kernels import _triton_harmonics as kernels

    n, k = sizes.nodes * sizes.neighbours, (lmax + 1) ** 2
    v, dv, f = normal(device, n, 3).float(), normal(device, n, 3).float(), normal(device, n, k).float()
    yield f"L={lmax} harmonics", lambda: kernels.harmonics(v, lmax), 4 * n * (3 + k)
    yield f"L={lmax} harmonics gradient", lambda: kernels.gradient(v, f, lmax), 4 * n * (6 + k)
    yield f"L={lmax} harmonics tangent", lambda: kernels.tangent(v, dv, lmax), 4 * n * (6 + k)
    yield f"L={lmax} harmonics second", lambda: kernels.second(v, dv, f, lmax), 4 * n * (9 + k)


def product_workloads(device: str, sizes: Sizes, lmax: int) -> Iterator[Workload]:
    """Gaunt products of 128 channels."""
    from ...kernels.gaunt import gaunt_product

    shape = (sizes.fields, (lmax + 1) ** 2, 128)
    x, y = (normal(device, *shape, seed=k).float().requires_grad_() for k in range(2))
    z = normal(device, *shape).float()
    value = gaunt_product(x, y, lmax)
    size = 4 * x.numel()
    yield f"L={lmax} gaunt product", lambda: gaunt_product(x.detach(), y.detach(), lmax), 3 * size
    yield (
        f"L={lmax} gaunt product backward",
        (lambda: torch.autograd.grad(value, (x, y), z, retain_graph=True)),
        6 * size,
    )


def grid_workloads(device: str, sizes: Sizes, lmax: int) -> Iterator[Workload]:
    """Facet's network: 64 channels in 2 heads, hidden 16, 10 x 20 points; the same on plain torch for comparison."""
    from ...kernels import use_backend
    from ...kernels.sphere import gauss_legendre_grid, grid_mlp

    grid = gauss_legendre_grid(lmax, *sizes.grid).to(device)
    x = normal(device, sizes.fields, (lmax + 1) ** 2, 64).float().requires_grad_()
    a, b = (0.2 * normal(device, *s).float().requires_grad_() for s in ((32, 16), (16, 32)))
    z, size = torch.randn_like(x), 4 * x.numel()
    value = grid_mlp(x, grid, (a, b), heads=2)

    def forward() -> Tensor:
        return grid_mlp(x.detach(), grid, (a.detach(), b.detach()), heads=2)

    def plain() -> Tensor:
        with use_backend("reference"):
            return forward()

    # Multiply-adds per node and point: to the grid and back K C each, the network 2 C H.
    flops = 2 * sizes.fields * len(grid.points) * (2 * (lmax + 1) ** 2 * 64 + 2 * 64 * 16)
    yield f"L={lmax} grid network ({flops / 1e9:.1f} GFLOP)", forward, 2 * size
    yield f"L={lmax} grid network, plain torch", plain, 2 * size
    yield (
        f"L={lmax} grid network backward",
        (lambda: torch.autograd.grad(value, (x, a, b), z, retain_graph=True)),
        3 * size,
    )


def copy_bandwidth(device: str, sizes: Sizes) -> float:
    """Bytes per second, read plus written, of a large copy."""
    n = 1 << (28 if device == "cuda" else 16)
    source, target = torch.zeros(n, device=device), torch.zeros(n, device=device)
    return 8 * n / (1e-3 * median_ms(lambda: target.copy_(source), device, sizes.repeats))


def median_ms(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a warm call."""
    times = []
    for _ in range(repeats):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - begin))
    return sorted(times)[len(times) // 2]


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


# --- inputs --------------------------------------------------------------------------------------------------


def normal(device: str | torch.device, *shape: int, seed: int = 0) -> Tensor:
    """Normal float64 numbers, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float32 if max(shape) > 10_000 else torch.float64
    return torch.randn(*shape, generator=generator, dtype=dtype).to(device, torch.float64)


def random_graph(degrees: list[int], device: str) -> Any:
    """Plan of a graph whose sources lie within 500 node numbers of their target, as in an ordered structure."""
    from ...kernels.plan import GraphPlan

    n, counts = len(degrees), torch.tensor(degrees)
    target = torch.repeat_interleave(torch.arange(n), counts)
    shift = torch.randint(-500, 501, (len(target),), generator=torch.Generator().manual_seed(0))
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return GraphPlan.build(torch.stack([(target + shift) % n, target]).to(device), row_ptr.to(device))


def coupled(channels: tuple[int, ...], parity: str) -> Any:
    """All couplings among degrees with these channels."""
    from ...kernels.conventions import coupling_paths
    from ...kernels.coupling import Coupling

    degrees = tuple(range(len(channels)))
    return Coupling(coupling_paths(degrees, len(channels) - 1, degrees, parity), channels, len(channels) - 1)


def message_arguments(plan: Any, coupling: Any, sizes: Sizes, device: str) -> list[Tensor]:
    """Random features, edge functions and weights, float64."""
    x = normal(device, plan.n_nodes, coupling.x_width)
    q = normal(device, len(plan.source), coupling.n_harmonics + sizes.radial, seed=1)
    return [x, q, normal(device, sizes.radial, coupling.n_weights, seed=2)]


if __name__ == "__main__":
    raise SystemExit(main())
