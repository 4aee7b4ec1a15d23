"""Time kernels side by side: same operation, same numbers, one process per operation, one thread, turn by turn.

Code is compiled anew in every run, with caches in a temporary folder: the column of first calls means something.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

from ...datasets.errors import UserError
from .kernel_side import ENOUGH, SLOW, SLOW_TURNS, TOLERANCES, WARM_UP, quantiles
from .machine import head, machine
from .options import names, say
from .workers import Worker, WorkerError

COMMAND = [sys.executable, "-m", "tesseral.scripts.bench.kernel_side"]
MESSAGE = {"operation": "message", "rows": 1000, "neighbours": 10, "channels": 64, "radial": 8}
NETWORK = {"operation": "grid", "rows": 1000, "channels": 64, "hidden": 16, "heads": 2}
PAIR = {"operation": "pair", "rows": 1000, "channels": 128}
CASES: dict[str, list[dict[str, Any]]] = {
    "message": [{**MESSAGE, "lmax": l, "source": s} for s in ("scalar", "all") for l in (1, 2, 3)],
    "gaunt": [{"operation": "gaunt", "rows": 1000, "channels": 128, "lmax": l} for l in range(1, 7)],
    "harmonics": [{"operation": "harmonics", "rows": 100_000, "lmax": l} for l in (1, 2, 3, 4, 6)],
    "grid": [{**NETWORK, "lmax": l} for l in (2, 3)],
    "pair": [{**PAIR, "lmax": l, "share": s} for l in (2, 4) for s in (0.3, 0.7)],
    "memory": [  # so many edges that they decide, not the nodes
        {**MESSAGE, "lmax": 2, "source": "all", "channels": c, "neighbours": n} for c in (16, 32) for n in (40, 80)
    ],
}
PEERS = {"e3nn": "e3nn", "sphericart": "sphericart"}  # name: module
ELSEWHERE = {
    "cuequivariance": "its kernels need a CUDA device; without one it runs plain torch",
    "openequivariance": "needs a CUDA device",
}


@dataclass
class Plan:
    """What to measure."""

    cases: list[str]
    peers: list[str]
    repeats: int
    seed: int
    missing: dict[str, str] = field(default_factory=lambda: dict(ELSEWHERE))


def plan(cases: str, peers: str, repeats: int, seed: int) -> Plan:
    """The measurement that the options describe; peers that are not installed are left out, with the reason.

    Raises:
        UserError: an unknown case or peer, or no repeats.
    """
    if repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {repeats}")
    chosen = names("--cases", cases.split(","), CASES)
    if not chosen:
        raise UserError(f"nothing to time: give --cases some of {', '.join(CASES)}")
    made = Plan(chosen, names("--peers", [] if peers == "none" else peers.split(","), PEERS), repeats, seed)
    for name in [name for name in made.peers if find_spec(PEERS[name]) is None]:
        made.peers.remove(name)
        made.missing[name] = "not installed"
        say(f"peer {name} is left out: not installed")
    return made


def bench(plan: Plan) -> dict[str, Any]:
    """Measure and return the record.

    Raises:
        WorkerError: our own side cannot run.
    """
    record: dict[str, Any] = {
        **head("kernels"),
        "settings": {
            "device": "cpu",
            "threads": 1,
            "dtype": "float32",
            "repeats": plan.repeats,
            "repeats_of_slow": SLOW_TURNS,
            "slow_s": SLOW,
            "warm_up_calls": WARM_UP,
            "measurement_s": ENOUGH,
            "seed": plan.seed,
            "clock": "CPU time of the process",
            "unit": "ms per call; low and high are 5 and 95 %",
            "error": "largest error over root mean square, against float64 closed forms",
            "tolerances": TOLERANCES,
        },
        "peers": {name: metadata.version("sphericart-torch" if name == "sphericart" else name) for name in plan.peers},
        "cases": [],
    }
    with TemporaryDirectory() as caches:
        environment = {"TESSERAL_CACHE": caches, "NUMBA_CACHE_DIR": caches}
        for operation in plan.cases:
            if operation == "memory":
                record["memory"] = list(_memory(plan, environment))
            else:
                record["cases"] += _timings(plan, operation, environment)
    record["missing"] = plan.missing
    record["machine"]["load_average_at_end"] = machine()["load_average"]
    return record


def _timings(plan: Plan, operation: str, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """All cases of one operation, in one process."""
    with Worker(COMMAND, environment) as worker:
        for spec in CASES[operation]:
            say(label(spec))
            reply = worker.ask("time", spec=spec, peers=plan.peers, repeats=plan.repeats, seed=plan.seed)
            for name, reason in reply.pop("failed").items():
                plan.missing[f"{name} ({label(spec)})"] = reason
                say(f"peer {name} is left out: {reason}")
            yield {"name": label(spec), "spec": spec, **reply, "ratios": _ratios(reply["sides"])}


def _ratios(sides: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per order and other side: how many times longer it takes than we do, turn by turn."""
    found: dict[str, dict[str, Any]] = {}
    for order, ours in sides["tesseral"]["orders"].items():
        found[order] = {}
        for name, side in sides.items():
            theirs = side["orders"].get(order, {})
            if name != "tesseral" and "time" in ours and "time" in theirs:
                pairs = zip(theirs["time"]["samples"], ours["time"]["samples"], strict=False)
                found[order][name] = quantiles([a / b for a, b in pairs])
    return found


def _memory(plan: Plan, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Extra memory of a double backward of messages, every number from a fresh process."""
    for side in ["tesseral", *(p for p in plan.peers if p == "e3nn")]:
        for spec in CASES["memory"]:
            edges, channels = spec["rows"] * spec["neighbours"], spec["channels"]
            say(f"memory of {side}: {edges} edges, {channels} channels")
            with Worker(COMMAND, environment) as worker:
                try:
                    reply = worker.ask("memory", spec=spec, side=side, seed=plan.seed)
                except WorkerError as error:
                    if side == "tesseral":
                        raise
                    plan.missing[f"{side} (memory)"] = str(error)
                    return
            yield {"side": side, "edges": edges, "channels": channels, "unit": "MiB", "spec": spec, **reply}


def label(spec: dict[str, Any]) -> str:
    """Short name of a case."""
    kind = {"scalar": " scalar→all", "all": " all→all"}.get(spec.get("source", ""), "")
    share = f" {100 * spec['share']:.0f} %" if "share" in spec else ""
    return f"{spec['operation']}{kind} L={spec['lmax']}{share}"


def wrong(record: dict[str, Any]) -> list[str]:
    """Our own results that are not right."""
    return [
        f"{case['name']}, {order}: error {found['error']:.1e}"
        for case in record["cases"]
        for order, found in case["sides"]["tesseral"]["orders"].items()
        if not found["right"]
    ]


def aims(record: dict[str, Any]) -> list[tuple[str, float, list[float]]]:
    """What the project wants to reach against e3nn: (sentence, factor, measured factors)."""
    wanted: list[tuple[str, float, str, tuple[int, ...]]] = [
        ("message forward+backward, L=2,3", 5.0, "message", (2, 3)),
        ("gaunt forward+backward, L=3..6", 10.0, "gaunt", (3, 4, 5, 6)),
    ]
    out = []
    for sentence, factor, operation, degrees in wanted:
        cases = [c for c in record["cases"] if c["spec"]["operation"] == operation and c["spec"]["lmax"] in degrees]
        found = [c["ratios"]["forward+backward"].get("e3nn") for c in cases]
        if found and all(found):
            out.append((sentence, factor, [f["median"] for f in found if f]))
    return out
