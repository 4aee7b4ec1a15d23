"""Time Hamiltonian networks side by side: QHNet of e3nn layers, our QHNet, our SPHNet; same molecules, turn by turn.

One process, one thread, CPU time; memory comes from processes of its own.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...datasets.errors import UserError
from .hamiltonian_side import PATHS, SIDES, TOLERANCES
from .kernel_side import ENOUGH, SLOW, SLOW_TURNS, quantiles
from .machine import head, machine
from .options import names, say
from .workers import Worker, WorkerError

COMMAND = [sys.executable, "-m", "tesseral.scripts.bench.hamiltonian_side"]
PEER = "qhnet e3nn"
AIM_SPEED, AIM_MEMORY = 7.0, 0.3
SPARE = 0.6  # of the free memory that a measurement may be expected to take


@dataclass
class Plan:
    """What to measure."""

    sizes: list[int]
    sides: list[str]
    paths: list[str]
    preset: str
    repeats: int
    seed: int
    missing: dict[str, str] = field(default_factory=dict)


def plan(sizes: str, sides: str, paths: str, *, preset: str, repeats: int, seed: int) -> Plan:
    """The measurement that the options describe; the peer is left out where e3nn is not installed.

    Raises:
        UserError: sizes that are no numbers of atoms, unknown sides or paths, or no repeats.
    """
    if repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {repeats}")
    try:
        atoms = sorted({int(n) for n in sizes.split(",") if n})
    except ValueError:
        raise UserError(f"--sizes must be numbers of atoms, as in 20,40,80, got {sizes!r}") from None
    if not atoms or atoms[0] < 2:
        raise UserError(f"--sizes must be numbers of at least 2 atoms, got {sizes!r}")
    chosen = names("--sides", _words(sides), SIDES)
    made = Plan(atoms, chosen, names("--paths", _words(paths), PATHS), preset, repeats, seed)
    if PEER in made.sides and find_spec("e3nn") is None:
        made.sides.remove(PEER)
        made.missing[PEER] = "e3nn is not installed"
        say(f"{PEER} is left out: e3nn is not installed")
    if not made.sides or not made.paths:
        raise UserError(f"nothing to time: there are sides {', '.join(SIDES)} and paths {', '.join(PATHS)}")
    return made


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def bench(plan: Plan) -> dict[str, Any]:
    """Measure and return the record.

    Raises:
        WorkerError: our own side cannot run.
    """
    record: dict[str, Any] = {
        **head("hamiltonian"),
        "settings": {
            "device": "cpu",
            "threads": 1,
            "dtype": "float32",
            "preset": plan.preset,
            "basis": "def2-svp",
            "molecule": "coiled alkane, random weights",
            "repeats": plan.repeats,
            "repeats_of_slow": SLOW_TURNS,
            "slow_s": SLOW,
            "measurement_s": ENOUGH,
            "seed": plan.seed,
            "clock": "CPU time of the process",
            "unit": "ms per molecule; low and high are 5 and 95 %",
            "paths": dict(PATHS),
            "memory": "MiB of tensors made during the call, largest sum alive at once; and growth of the process",
            "tolerances": TOLERANCES,
        },
        "versions": {name: metadata.version(name) for name in ("torch", "numba", "e3nn") if find_spec(name)},
        "sizes": {},
    }
    with Worker(COMMAND) as worker:
        say("checking")
        record["checks"] = worker.ask("check", sides=plan.sides, preset=plan.preset, seed=plan.seed)
    memory: dict[str, dict[int, float]] = {}
    for n in plan.sizes:
        peaks = _memory(plan, n, memory)
        able = {p: [s for s in plan.sides if s in peaks.get(p, {})] for p in plan.paths}
        found: dict[str, Any] = {"memory": peaks}
        with Worker(COMMAND) as worker:
            for path in plan.paths:
                say(f"{n} atoms, {path}")
                reply = worker.ask(
                    "time",
                    atoms=n,
                    sides=able[path],
                    path=path,
                    preset=plan.preset,
                    repeats=plan.repeats,
                    seed=plan.seed,
                )
                found["facts"] = reply["facts"]
                found.setdefault("times", {})[path] = reply["times"]
                found.setdefault("ratios", {})[path] = _ratios(reply["times"])
        record["sizes"][str(n)] = found
    record["missing"] = plan.missing
    record["machine"]["load_average_at_end"] = machine()["load_average"]
    return record


def _memory(plan: Plan, n: int, known: dict[str, dict[int, float]]) -> dict[str, dict[str, Any]]:
    """Peak memory of every path and side, each from a fresh process; what would not fit is left out, with a reason."""
    found: dict[str, dict[str, Any]] = {}
    for path in plan.paths:
        for side in plan.sides:
            series = known.setdefault(f"{path} {side}", {})
            expected = _expected(series, n)
            if expected > SPARE * _free_memory():
                plan.missing[f"{side}, {path}, {n} atoms"] = f"would take about {expected / 1024:.0f} GiB"
                say(f"{side}, {path}, {n} atoms is left out: about {expected / 1024:.0f} GiB")
                continue
            say(f"{n} atoms, memory of {path}: {side}")
            with Worker(COMMAND) as worker:
                try:
                    reply = worker.ask("memory", atoms=n, side=side, path=path, preset=plan.preset, seed=plan.seed)
                except WorkerError as error:
                    if side != PEER:
                        raise
                    plan.missing[f"{side}, {path}, {n} atoms"] = str(error)
                    continue
            series[n] = reply["allocated"]
            found.setdefault(path, {})[side] = reply
    return found


def _expected(series: dict[int, float], n: int) -> float:
    """MiB at n atoms from the largest smaller molecule: memory grows with the pairs at most."""
    if not series:
        return 0.0
    last = max(series)
    return series[last] * (n * (n - 1)) / (last * (last - 1))


def _free_memory() -> float:
    """MiB of memory that new programs may take; without Linux's file, what the machine has."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


def _ratios(times: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Per side: how many times longer the peer takes, turn by turn."""
    if PEER not in times:
        return {}
    theirs = times[PEER]["samples"]
    return {
        side: quantiles([a / b for a, b in zip(theirs, ours["samples"], strict=False)])
        for side, ours in times.items()
        if side != PEER
    }


def wrong(record: dict[str, Any]) -> list[str]:
    """Checks that fail."""
    return [
        f"{name}: {check['error']:.1e} where {check['tolerance']:.0e} is allowed"
        for name, check in record["checks"].items()
        if not check["right"]
    ]


def aims(record: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """What the project wants to reach with SPHNet: (sentence, met, measured), at the largest size of each path."""
    found = []
    for path in record["settings"]["paths"]:
        sizes = [n for n, size in record["sizes"].items() if "sphnet" in size["ratios"].get(path, {})]
        if not sizes:
            continue
        factors = [record["sizes"][n]["ratios"][path]["sphnet"]["median"] for n in sizes]
        text = ", ".join(f"{f:.1f} ({n} atoms)" for n, f in zip(sizes, factors, strict=True))
        found.append((f"{path}: SPHNet at least {AIM_SPEED:g}x faster than {PEER}", min(factors) >= AIM_SPEED, text))
        shares = [
            record["sizes"][n]["memory"][path]["sphnet"]["allocated"]
            / record["sizes"][n]["memory"][path][PEER]["allocated"]
            for n in sizes
        ]
        text = ", ".join(f"{100 * s:.0f} % ({n} atoms)" for n, s in zip(sizes, shares, strict=True))
        found.append((f"{path}: SPHNet in {100 * AIM_MEMORY:g} % of its memory", max(shares) <= AIM_MEMORY, text))
    return found
