"""Whole steps of small systems on a GPU, part of `scripts.bench.gpu`: kernels launched one by one, and as a CUDA graph.

Both get the same graphs on the host, neighbours found already, and give energy, forces and stress back to the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.graph import Graph, graph_from_structure
from ...datasets.statistics import Statistics
from ...datasets.structure import Structure
from ...potentials.base import Potential, Prediction, predict
from ...potentials.captured import Capture, CapturedStep, cuda_graph
from ...potentials.export import TOLERANCES, errors
from ...potentials.tesseral import Tesseral

FCC = [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
TINY = {"cutoff": 3.0, "lmax": 1, "channels": [2], "field_channels": 2, "scalars": 4, "n_radial": 2}


def steps(device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Two rows per system: errors of replays against the model, relative to the largest force; milliseconds of both.

    Args:
        device: "cuda"; "cpu" rehearses with a tiny model, where a stand-in runs the step again.
        repeats: timed calls.
    """
    capture = cuda_graph if device == "cuda" else run_again
    columns = ("energy", "energies", "forces", "stress", "eager ms", "graph ms", "first s")
    print(f"\n{'steps':24} " + " ".join(f"{name:>9}" for name in columns))
    for name, cell, basis, repeat in systems(device):
        for dtype in (torch.float32, torch.float64):
            model = network(device).to(dtype)
            graphs = [crystal(cell, basis, repeat, seed, model.cutoff) for seed in range(4)]
            full = f"{name} {str(dtype)[6:]}"
            try:
                yield from compare(full, model, graphs, capture, repeats)
            except RuntimeError as error:  # no capture, or a wrong one: a row of the record, which goes on
                print(f"{full:24} {error} !", flush=True)
                yield {"operation": f"step {full}", "order": "value", "error": str(error), "right": False}


def run_again(function: Callable[..., Any], buffers: Any) -> Callable[[], Any]:
    """Stands for a capture where there is no GPU."""
    return lambda: function(*buffers)


def compare(
    name: str, model: Potential, graphs: list[Graph], capture: Capture, repeats: int
) -> Iterator[dict[str, Any]]:
    """Rows of one system. The first graph is captured, replays of the others must be right as well."""
    step = CapturedStep(model, capture)
    start = time.perf_counter()
    step.predict(graphs[0])
    first = time.perf_counter() - start
    each = [errors(outputs(step.predict(g)), outputs(eager(model, g))) for g in (*graphs[1:], graphs[0])]
    tolerance = TOLERANCES[str(model.dtype)[6:]]
    right = step.recordings == 1 and all(error < tolerance for one in each for error in one.values())
    worst = {key: max(one[key] for one in each) for key in each[0]}
    plain = milliseconds(lambda graph: eager(model, graph), graphs, repeats)
    replayed = milliseconds(step.predict, graphs, repeats)
    shown = " ".join(f"{error:9.1e}" for error in worst.values())
    print(
        f"{name:24} {shown} {plain:9.3f} {replayed:9.3f} {first:9.1f}{'' if right else ' !'}",
        flush=True,
    )
    yield {
        "operation": f"step {name}",
        "order": "value",
        "errors": worst,
        "recordings": step.recordings,
        "right": right,
    }
    yield {
        "step": name,
        "eager_ms": plain,
        "captured_ms": replayed,
        "capture_s": first,
        "padded": list(step.size),
    }


def eager(model: Potential, graph: Graph) -> Prediction:
    """The model as the calculator runs it without a CUDA graph, results on the host."""
    found = predict(model, graph.to(model.device))
    for name in ("energy", "energies", "forces", "stress"):
        setattr(found, name, getattr(found, name).cpu())
    return found


def outputs(found: Prediction) -> list[Tensor]:
    """In the order of `export.errors`."""
    parts = (found.energy, found.energies, found.forces, found.stress)
    return [part for part in parts if part is not None]


def milliseconds(run: Callable[[Graph], Any], graphs: list[Graph], repeats: int) -> float:
    """Median time of a call, which ends with the results on the host; graphs take turns."""
    times = []
    for k in range(max(repeats, len(graphs))):
        start = time.perf_counter()
        run(graphs[k % len(graphs)])
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def network(device: str) -> Potential:
    """The default architecture with random weights; a tiny one without a GPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        statistics = Statistics([14], {14: -7800.0}, 1.0, 1.0, 30.0, 1, 1)
        model = Tesseral.from_config({} if device == "cuda" else TINY, statistics)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(device).eval().requires_grad_(False)


def systems(device: str) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """(name, cell, fractional positions of the atoms in it, repetitions along each axis)."""
    fcc, diamond = 3.9 * np.array(FCC), np.array([[0.0, 0, 0], [0.25, 0.25, 0.25]])
    if device != "cuda":
        yield "2 atoms", fcc, diamond, 1
        return
    yield "27 atoms", fcc, diamond[:1], 3
    corners = np.array([[0.0, 0, 0], *FCC])
    yield "Si216", 5.431 * np.eye(3), np.concatenate([corners + shift for shift in diamond]), 3


def crystal(cell: np.ndarray, basis: np.ndarray, repeat: int, seed: int, cutoff: float) -> Graph:
    """A silicon crystal whose atoms have moved by some 0.05 Å."""
    shifts = np.stack(np.meshgrid(*[np.arange(repeat)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    positions = (shifts + basis).reshape(-1, 3) @ cell
    positions += np.random.default_rng(seed).normal(0, 0.05, positions.shape)
    structure = Structure(np.full(len(positions), 14), positions, repeat * cell, np.array([True] * 3))
    return graph_from_structure(structure, cutoff, dtype=torch.float64)
