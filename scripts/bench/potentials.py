"""Time potentials side by side: each in its own process, one thread, turn by turn, on identical structures.

Every system gets fresh processes, so that their peak memory is the system's own. A repeat times each program once
(the mean of a few calls), and every other repeat takes the programs in reverse order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ...datasets.errors import UserError
from ...kernels.backends import backends
from .machine import head
from .options import say
from .systems import ELEMENTS, SYSTEMS, System
from .workers import HERE, OWN, Worker, WorkerError, peer_command

PEERS = {"mace": HERE / "mace_side.py"}
ARCHITECTURE = "tesseral"
CONFIG: dict[str, Any] = {"cutoff": 5.0, "channels": [64], "field_channels": 64}  # of the shipped weights
PATHS = {
    "calculator": "energy, forces (and stress of periodic systems) through the ASE calculator, atoms moved before "
    "every call, neighbour list built anew in every call",
    "model": "energy and forces by the model alone; the neighbour list and the graph are ready",
    "step": "training step on a batch of 8 molecules that is ready: energies, forces, squared loss, gradient of all "
    "weights, Adam",
}
WARM_UP = 4  # calls before anything counts; the last tells how many calls a measurement needs
ENOUGH = 0.3  # s of CPU time per measurement, where one call is shorter
MOST_CALLS = 50


@dataclass
class Program:
    """One side of the comparison: what is started, what it is told, and the elements it knows."""

    name: str
    command: list[str]
    options: dict[str, Any]
    elements: set[int]
    peer: bool = False


@dataclass
class Plan:
    """What to measure."""

    programs: list[Program]
    systems: list[System]
    repeats: int
    seed: int
    missing: dict[str, str] = field(default_factory=dict)


def plan(models: str, peers: Sequence[str], systems: str, repeats: int, seed: int) -> Plan:
    """The measurement that the options describe.

    Raises:
        UserError: an unknown model, peer or system, or no repeats.
    """
    if repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {repeats}")
    names = [name for name in systems.split(",") if name]
    if unknown := sorted(set(names) - set(SYSTEMS)):
        raise UserError(f"--systems: no system is called {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    own = [_own(name, seed) for name in dict.fromkeys(models.split(",")) if name]
    if not own or not names:
        raise UserError("nothing to time: give at least one of --models and one of --systems")
    programs = own + [_peer(text, seed) for text in peers]
    if len({program.name for program in programs}) < len(programs):
        raise UserError("two programs have one name: " + ", ".join(program.name for program in programs))
    return Plan(programs, [SYSTEMS[name]() for name in dict.fromkeys(names)], repeats, seed)


def _own(text: str, seed: int) -> Program:
    """A model of ours from MODEL or MODEL@BACKEND."""
    model, _, backend = text.partition("@")
    if backend and backend not in backends():
        raise UserError(f"--models {text}: no kernel backend {backend!r} here; there are {', '.join(backends())}")
    options: dict[str, Any] = {"model": model, "backend": backend or None}
    if model == "random":
        options |= {"architecture": ARCHITECTURE, "config": CONFIG, "elements": ELEMENTS, "seed": seed}
        return Program(text.replace("random", "tesseral"), OWN, options, set(ELEMENTS))
    from ...potentials import locate
    from ...training.checkpoint import read_header

    path = locate(model)
    options["model"] = str(path.resolve())
    return Program(text, OWN, options, set(read_header(path)["elements"]))


def _peer(text: str, seed: int) -> Program:
    """A peer from NAME=PYTHON."""
    name, _, python = text.partition("=")
    if name not in PEERS or not python:
        raise UserError(f"--peer {text}: expected NAME=PYTHON with a name out of {', '.join(PEERS)}")
    options = {"elements": ELEMENTS, "cutoff": CONFIG["cutoff"], "seed": seed}
    return Program(name, peer_command(python, PEERS[name]), options, set(ELEMENTS), peer=True)


def bench(plan: Plan) -> dict[str, Any]:
    """Measure and return the record; a peer that cannot run is left out, with its reason in the record.

    Raises:
        WorkerError: our own side cannot run.
    """
    facts: dict[str, Any] = {}
    record: dict[str, Any] = {
        **head("potentials"),
        "settings": {
            "device": "cpu",
            "threads": 1,
            "dtype": "float32",
            "repeats": plan.repeats,
            "warm_up_calls": WARM_UP,
            "seed": plan.seed,
            "clock": "CPU time of the program's process",
            "unit": "ms per evaluation",
        },
        "paths": PATHS,
        "programs": facts,
        "systems": {},
    }
    for system in plan.systems:
        say(f"{system.name}: {len(system.numbers)} atoms")
        record["systems"][system.name] = _bench_system(plan, system, facts)
    record["missing"] = plan.missing
    return record


class Contest:
    """The programs that run on one system. A peer that fails leaves it for good; our own side must not fail."""

    def __init__(self, plan: Plan, facts: dict[str, Any], stack: ExitStack):
        self.plan, self.facts, self.stack = plan, facts, stack
        self.workers: dict[str, Worker] = {}

    def start(self, program: Program) -> bool:
        """Start a program; False when it could not be."""
        try:
            self.workers[program.name] = self.stack.enter_context(Worker(program.command))
        except WorkerError as error:
            self._leave(program, error)
            return False
        reply = self.ask(program, "open", options=program.options)
        if reply is not None:
            self.facts[program.name] = {**reply, "peer": program.peer}
        return reply is not None

    def ask(self, program: Program, do: str, **values: Any) -> dict[str, Any] | None:
        """A running program's reply, or None when it is out."""
        if program.name not in self.workers:
            return None
        try:
            return self.workers[program.name].ask(do, **values)
        except WorkerError as error:
            self._leave(program, error)
            return None

    def _leave(self, program: Program, error: WorkerError) -> None:
        if not program.peer:
            raise error
        self.workers.pop(program.name, None)
        self.plan.missing[program.name] = str(error)
        say(f"peer {program.name} is left out: {error}")


def _bench_system(plan: Plan, system: System, facts: dict[str, Any]) -> dict[str, Any]:
    """All programs that know the system's elements, on one system; `facts` learns about the programs."""
    paths = ["step"] if system.training else ["calculator", "model"]
    result: dict[str, Any] = {
        "atoms": len(system.numbers) * (len(system.frames) if system.training else 1),
        "edges": {},
        "paths": {},
        "memory": {},
    }
    elements = set(system.numbers.tolist())
    with ExitStack() as stack:
        contest = Contest(plan, facts, stack)
        for program in plan.programs:
            if program.name in plan.missing or not elements <= program.elements:
                continue
            if contest.start(program):
                loaded = contest.ask(program, "load", system=system.as_dict(), paths=paths)
                if loaded is not None:
                    result["edges"][program.name] = loaded["edges"]
                    result["memory"][program.name] = {"unit": "MiB", "before": _mebibytes(loaded["peak"])}
        for path in paths:
            result["paths"][path] = _compare(contest, path, result["memory"])
    return result


def _compare(contest: Contest, path: str, memory: dict[str, Any]) -> dict[str, Any]:
    """Times of one path, program by program in turns, and the ratio of every peer to every model of ours."""
    programs = [program for program in contest.plan.programs if program.name in contest.workers]
    calls = {program.name: _warm_up(contest, program, path) for program in programs}
    samples: dict[str, list[dict[str, float]]] = {program.name: [] for program in programs}
    for repeat in range(contest.plan.repeats):
        for program in programs[:: -1 if repeat % 2 else 1]:
            reply = contest.ask(program, "time", path=path, calls=calls[program.name])
            if reply is not None:
                samples[program.name].append(reply)
                memory[program.name]["peak"] = _mebibytes(reply["peak"])
    times = {name: {"calls": calls[name], **summary(found)} for name, found in samples.items() if found}
    pairs = [(p.name, o.name) for p in programs for o in programs if p.peer and not o.peer]
    return {
        "times": times,
        "ratios": {f"{p} / {o}": ratio(times[p], times[o]) for p, o in pairs if p in times},
    }


def _warm_up(contest: Contest, program: Program, path: str) -> int:
    """Calls that one measurement needs, after the first calls with their one-time costs."""
    contest.ask(program, "time", path=path, calls=WARM_UP - 1)
    reply = contest.ask(program, "time", path=path, calls=1)
    if reply is None:
        return 1
    return min(max(math.ceil(ENOUGH / max(reply["cpu"], 1e-6)), 1), MOST_CALLS)


def ratio(slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """How many times longer the first takes: ratio of the medians, range over the repeats."""
    turns = [a / b for a, b in zip(slow["samples"], fast["samples"], strict=False)]
    return {"median": slow["median"] / fast["median"], "min": min(turns), "max": max(turns)}


def summary(samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Median, smallest and largest CPU time in ms, all samples, and the median wall time."""
    cpu = [1e3 * sample["cpu"] for sample in samples]
    return {
        "median": median(cpu),
        "min": min(cpu),
        "max": max(cpu),
        "samples": cpu,
        "wall_median": 1e3 * median(sample["wall"] for sample in samples),
    }


def _mebibytes(size: int) -> float:
    return round(size / 2**20, 1)
