"""The worker of `tesseral bench kernels`: checks and times one case, or measures its memory, per request.

A line on stdin is ``{"do": "time" or "memory", "spec": {...}, ...}``, the reply a line on stdout; see `timing` and
`memory` for the rest of both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .kernel_cases import BACKWARD, DOUBLE, FORWARD, Case, Side, build
from .serve import answer

TOLERANCES = {FORWARD: 1e-5, BACKWARD: 3e-5, DOUBLE: 1e-4}  # largest error over rms, float32
CHECKED = 100  # rows of the inputs on which results are compared
WARM_UP = 3  # calls; TorchScript optimises in the second and third
ENOUGH = 0.05  # s of CPU time per measurement, where one call is shorter
MOST_CALLS = 50
SLOW, SLOW_TURNS = 1.0, 3  # a side whose call takes longer (s) is measured this many times, warmed up once
Call = Callable[[], list[Tensor]]


def main() -> None:
    """Answer requests until stdin closes; what libraries print to stdout goes to stderr."""
    answer(lambda request: ACTIONS[request.pop("do")](**request))


def timing(spec: dict[str, Any], peers: list[str], repeats: int, seed: int) -> dict[str, Any]:
    """Check every side on a few rows, then time those that are right, turn by turn.

    Returns:
        "facts" of the case; "sides": per side "peer" and, per order of derivative, "first_call_s", "error", "right"
        and the "time"; "failed": peers that raised, with the reason.
    """
    rows = min(spec["rows"], CHECKED)
    small, failed = build({**spec, "rows": rows}, peers, seed), {}
    exact = {order: _exact(small, order) for order in small.orders}
    sides: dict[str, Any] = {}
    for side in small.sides:
        try:
            found = {order: _check(small, side, order, exact[order]) for order in _orders(small, side)}
        except Exception as error:
            if not side.peer:
                raise
            failed[side.name] = f"{type(error).__name__}: {error}"
            continue
        sides[side.name] = {"peer": side.peer, "orders": found}
    case = build(spec, peers, seed)
    for order in case.orders:
        able = {s.name: s for s in case.sides if s.name in sides and order in s.orders}
        right = [s for name, s in able.items() if sides[name]["orders"][order]["right"]]
        for name, samples in turns({s.name: prepare(case, s, order) for s in right}, repeats).items():
            sides[name]["orders"][order]["time"] = samples
    return {"facts": {"rows": spec["rows"], **case.facts}, "sides": sides, "failed": failed}


def _orders(case: Case, side: Side) -> list[str]:
    return [order for order in case.orders if order in side.orders]


def prepare(case: Case, side: Side, order: str, dtype: torch.dtype = torch.float32) -> Call:
    """A function that evaluates one side and returns its value, gradients or second derivatives, in its own layout.

    Double backward is what a loss of forces needs: gradients with respect to what depends on positions, and the
    gradients of a random combination of them with respect to the cotangent and all inputs.
    """
    generator = torch.Generator().manual_seed(1)

    def random(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def own(t: Tensor) -> Tensor:
        return t.to(dtype).contiguous()

    inputs = [own(t).requires_grad_() for t in side.pack(case.inputs)]
    cotangent = own(side.cotangent(random(case.shape)))
    directions = [own(d) for d in side.pack([random(t.shape) for t in case.inputs])[: side.moved]]

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [side.run(*inputs)]

    def backward() -> list[Tensor]:
        return list(torch.autograd.grad(side.run(*inputs), inputs, cotangent))

    def double() -> list[Tensor]:
        value, seed = side.run(*inputs), cotangent.requires_grad_()
        first = torch.autograd.grad(value, inputs[: side.moved], seed, create_graph=True)
        return list(torch.autograd.grad(first, [seed, *inputs], directions))

    return {FORWARD: forward, BACKWARD: backward, DOUBLE: double}[order]


def _house(side: Side, order: str, outputs: list[Tensor]) -> list[Tensor]:
    """What `prepare` returned, in the layout of the house and in float64."""
    found = [t.detach().double() for t in outputs]
    if order == FORWARD:
        return [side.value(found[0])]
    if order == BACKWARD:
        return list(side.unpack(found))
    return [side.value(found[0]), *side.unpack(found[1:])]


def _exact(case: Case, order: str) -> list[Tensor]:
    outputs = prepare(case, Side("exact", case.exact, moved=case.moved), order, torch.float64)()
    return [t.detach() for t in outputs]


def _check(case: Case, side: Side, order: str, exact: list[Tensor]) -> dict[str, Any]:
    """First call (what it costs) and its largest error, relative to the root mean square of each tensor."""
    evaluate, start = prepare(case, side, order), time.process_time()
    outputs = evaluate()
    seconds, errors = time.process_time() - start, []
    for a, b in zip(_house(side, order, outputs), exact, strict=True):
        errors.append(float((a - b).abs().max() / b.square().mean().sqrt()))
    error = max(errors)
    right = error <= TOLERANCES[order]  # a NaN is not
    return {"first_call_s": seconds, "error": error, "right": right}


def turns(calls: dict[str, Call], repeats: int) -> dict[str, Any]:
    """CPU times (ms) of all sides in turns, every other time in reverse order; slow sides take part in a few only."""
    counts, turns = {}, {}
    for name, call in calls.items():
        seconds = _seconds(call, 1)
        if seconds < SLOW:
            _seconds(call, WARM_UP - 1)
            seconds = _seconds(call, 1)
        turns[name] = repeats if seconds < SLOW else min(repeats, SLOW_TURNS)
        counts[name] = min(max(math.ceil(ENOUGH / max(seconds, 1e-6)), 1), MOST_CALLS)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: -1 if repeat % 2 else 1]:
            if repeat < turns[name]:
                samples[name].append(1e3 * _seconds(calls[name], counts[name]))
    return {name: {"calls": counts[name], **quantiles(found), "samples": found} for name, found in samples.items()}


def _seconds(call: Call, calls: int) -> float:
    """Mean CPU time of a call."""
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and the 5 to 95 % range."""
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return {"median": median, "low": low, "high": high}


# --- memory --------------------------------------------------------------------------------------------------


def memory(spec: dict[str, Any], side: str, seed: int) -> dict[str, Any]:
    """Largest extra memory (MiB) of a double backward: of tensors, and of the process where the system tells.

    Tensors are what torch's allocator hands out, counted by its profiler: exact, the same on every run, and blind to
    code and compilers. The resident memory, which sees everything, confirms it: its high-water mark is reset after a
    first call on a few rows. A process measures once.
    """
    peers = [side] if side != "tesseral" else []

    def evaluate(rows: int) -> Call:
        case = build({**spec, "rows": rows}, peers, seed)
        chosen = next(s for s in case.sides if s.name == side)
        return prepare(case, chosen, DOUBLE)

    small, call = evaluate(min(spec["rows"], CHECKED)), evaluate(spec["rows"])
    for _ in range(WARM_UP):
        small()
    resident = resident_growth(call)
    return {"allocated": allocated(call) / 2**20, "resident": resident}


def allocated(call: Call) -> int:
    """Largest sum of the bytes of tensors that were alive at once, made since the start of the call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    alive = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        largest = max(largest, alive)
    return largest


def resident_growth(call: Call) -> float | None:
    """MiB by which the process grows during the call; None where Linux's counters are missing."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
        before = _status("VmRSS")
        call()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


def _status(name: str) -> int:
    """A counter of this process, kB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"time": timing, "memory": memory}

if __name__ == "__main__":
    main()
