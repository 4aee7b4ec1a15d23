"""A small labelled data set made by a teacher potential, and the configuration of a small student."""

from pathlib import Path

import numpy as np
import torch

from tesseral.datasets.graph import graph_from_structure
from tesseral.datasets.statistics import Statistics
from tesseral.datasets.store_writer import write_store
from tesseral.datasets.structure import Structure
from tesseral.potentials import build
from tesseral.potentials.base import predict

MODEL = {"cutoff": 3.0, "lmax": 1, "channels": [4, 2], "field_channels": 2, "scalars": 4, "n_radial": 4}
REFERENCES = {1: -13.6, 8: -430.0}


def teacher(seed: int = 7):
    """A random potential of H and O in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        statistics = Statistics([1, 8], REFERENCES, 1.0, 1.0, 8.0, 1, 1)
        return build("tesseral", MODEL, statistics).double()


def structure(rng: np.random.Generator, periodic: bool, n: int) -> Structure:
    """Atoms on a jittered grid, in a cell or free."""
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n]
    positions = 1.7 * grid + rng.normal(scale=0.12, size=(n, 3))
    cell = np.diag([3.4, 3.4, 3.5]) if periodic else np.zeros((3, 3))
    return Structure(rng.choice([1, 8], size=n), positions, cell, np.full(3, periodic))


def labelled(model, frame: Structure) -> Structure:
    """The frame with the model's energy, forces and, in a cell, stress."""
    prediction = predict(model, graph_from_structure(frame, model.cutoff, dtype=torch.float64))
    frame.labels["energy"] = prediction.energy[0].numpy()
    frame.labels["forces"] = prediction.forces.numpy()
    if prediction.stress is not None:
        frame.labels["stress"] = prediction.stress[0].numpy()
    return frame


def frames(n: int, *, seed: int = 0) -> list[Structure]:
    """Free clusters (config_type "cluster") and crystals (config_type "crystal") in turn."""
    rng, model = np.random.default_rng(seed), teacher()
    result = []
    for k in range(n):
        frame = labelled(model, structure(rng, periodic=k % 2 == 1, n=int(rng.integers(3, 9))))
        frame.info["config_type"] = "crystal" if k % 2 else "cluster"
        result.append(frame)
    return result


def write(path: Path, n: int = 24, *, seed: int = 0) -> Path:
    """A store of `n` frames."""
    write_store(path, frames(n, seed=seed))
    return path


def config_text(data: Path, run: Path, **training: object) -> str:
    """A configuration in YAML: 16 training frames in 4 steps per epoch, float64, one thread."""
    settings = {
        "epochs": 3,
        "threads": 1,
        "precision": "float64",
        "save_every": 3,
        "seed": 3,
        "tensorboard": False,
    }
    lines = [f"  {key}: {value}" for key, value in {**settings, **training}.items()]
    return "\n".join(
        [
            f"run: {run}",
            f"model: {{config: {MODEL}}}",
            f"data: {{train: {data}, val: 0.34, batch_size: 4}}",
            "loss: {stress: {weight: 10}}",
            "training:",
            *lines,
        ]
    )
