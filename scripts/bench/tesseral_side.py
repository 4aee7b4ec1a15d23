"""Our side of `tesseral bench potentials`, in its own process: ``python -m tesseral.scripts.bench.tesseral_side``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ...datasets.graph import collate, graph_from_structure
from ...datasets.statistics import Statistics
from ...datasets.structure import Structure
from ...kernels.backends import VARIABLE, choose
from ...md.calculator import Calculator
from ...potentials import build, load
from ...potentials.base import predict
from .serve import serve

MEAN_NEIGHBORS = 20.0  # scales messages, does not change the time


class Side:
    """A potential of ours.

    Args:
        options: "model" (a shipped name, a path, or "random"), and for "random" its "architecture", "config",
            "elements" and "seed"; "backend": name of the kernel backend, None for the automatic one.
    """

    def __init__(self, options: dict[str, Any]):
        if options["backend"] is not None:
            os.environ[VARIABLE] = options["backend"]
        self.weights = "random" if options["model"] == "random" else "trained"
        if self.weights == "random":
            torch.manual_seed(options["seed"])
            elements = options["elements"]
            zero = dict.fromkeys(elements, 0.0)
            statistics = Statistics(elements, zero, 1.0, 1.0, MEAN_NEIGHBORS, 0, 0)
            self.model = build(options["architecture"], options["config"], statistics)
        else:
            self.model = load(options["model"], dtype="float32")

    def describe(self) -> dict[str, Any]:
        """Facts about the model."""
        return {
            "model": self.model.architecture,
            "weights": self.weights,
            "config": self.model.config_dict(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "backend": choose(torch.zeros(1), "message"),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__},
        }

    def load(self, system: dict[str, Any], paths: list[str]) -> int:
        """Get a system ready; returns the edges of its first frame, of all frames for a training batch."""
        axes = np.full(3, system["periodic"])
        self.frames = np.array(system["frames"])
        self.atoms = Atoms(system["numbers"], self.frames[0], cell=system["cell"], pbc=axes)
        structures = [
            Structure(np.array(system["numbers"]), frame, self.atoms.cell.array, axes) for frame in self.frames
        ]
        self.graphs = [graph_from_structure(s, self.model.cutoff, dtype=torch.float64) for s in structures]
        if "step" in paths:
            self.batch = collate(self.graphs)
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-6)
            return self.batch.n_edges
        self.calculator = Calculator(self.model, dtype="float32", skin=0.0)
        self.atoms.calc = self.calculator
        return self.graphs[0].n_edges

    def evaluate(self, path: str, k: int) -> None:
        """One evaluation; FloatingPointError when it gives numbers that are not finite."""
        frame = k % len(self.frames)
        if path == "calculator":
            self.atoms.positions = self.frames[frame]
            forces = self.atoms.get_forces()
            finite = bool(np.isfinite(forces).all() and np.isfinite(self.atoms.get_potential_energy()))
        elif path == "model":
            found = predict(self.calculator.model, self.graphs[frame], stress=False).forces
            finite = found is not None and bool(torch.isfinite(found).all())
        else:
            finite = self._step()
        if not finite:
            raise FloatingPointError("the model returned numbers that are not finite")

    def _step(self) -> bool:
        """One training step on a squared loss of energies and forces; True when the loss is finite."""
        prediction = predict(self.model, self.batch, stress=False, create_graph=True)
        if prediction.forces is None:
            raise RuntimeError("no forces to train on")
        per_atom = prediction.energy / self.batch.n_atoms
        loss = per_atom.square().mean() + prediction.forces.square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return bool(torch.isfinite(loss))


if __name__ == "__main__":
    serve(Side)
