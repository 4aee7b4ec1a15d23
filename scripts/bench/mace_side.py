"""MACE's side of `tesseral bench potentials`; run by a Python that has mace-torch, without this package.

Random weights of the small size: ScaleShiftMACE, hidden 128x0e, 2 interactions, max_ell 3, correlation 3, 8 Bessel
functions, radial network 3 x 64, readout 16x0e; all else as in `mace_run_train`.
"""

import logging
import warnings
from importlib import metadata
from typing import Any

import numpy as np

CONFIG: dict[str, Any] = {
    "num_bessel": 8,
    "num_polynomial_cutoff": 5,
    "max_ell": 3,
    "num_interactions": 2,
    "hidden_irreps": "128x0e",
    "MLP_irreps": "16x0e",
    "correlation": 3,
    "radial_MLP": [64, 64, 64],
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
}
MEAN_NEIGHBORS = 20.0  # scales messages, does not change the time


class Side:
    """MACE with random weights.

    Args:
        options: "elements" (atomic numbers), "cutoff" (Å) and "seed".
    """

    def __init__(self, options: dict[str, Any]):
        warnings.simplefilter("ignore")
        import mace  # noqa: F401 (before torch and e3nn: it lets torch load e3nn's constants)
        import torch

        logging.disable(logging.WARNING)
        torch.manual_seed(options["seed"])
        self.torch = torch
        self.options = options
        self.model = self._build()

    def _build(self) -> Any:
        from e3nn import o3
        from mace import modules

        elements = self.options["elements"]
        blocks = {k: modules.interaction_classes[v] for k, v in CONFIG.items() if k.startswith("interaction")}
        irreps = {k: o3.Irreps(v) for k, v in CONFIG.items() if k.endswith("irreps")}
        return modules.ScaleShiftMACE(
            **{**CONFIG, **blocks, **irreps},
            r_max=self.options["cutoff"],
            num_elements=len(elements),
            atomic_numbers=elements,
            atomic_energies=np.zeros(len(elements)),
            avg_num_neighbors=MEAN_NEIGHBORS,
            gate=self.torch.nn.functional.silu,
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        )

    def describe(self) -> dict[str, Any]:
        """Facts about the model."""
        return {
            "model": "ScaleShiftMACE",
            "weights": "random",
            "config": {**CONFIG, "r_max": self.options["cutoff"]},
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "threads": self.torch.get_num_threads(),
            "versions": {name: metadata.version(name) for name in ("torch", "mace-torch", "e3nn")},
        }

    def load(self, system: dict[str, Any], paths: list[str]) -> int:
        """Get a system ready; returns the edges of its first frame, of all frames for a training batch."""
        from ase import Atoms
        from mace.calculators import MACECalculator

        self.frames = np.array(system["frames"])
        pbc = [system["periodic"]] * 3
        frames = [Atoms(system["numbers"], x, cell=system["cell"], pbc=pbc) for x in self.frames]
        if "step" in paths:
            self.batch = self._batch(frames)
            self.sizes = self.batch["ptr"].diff()
            self.optimizer = self.torch.optim.Adam(self.model.parameters(), lr=1e-6)
            return int(self.batch["edge_index"].shape[1])
        self.atoms = frames[0].copy()
        self.atoms.calc = MACECalculator(models=self.model, device="cpu", default_dtype="float32")
        self.batches = [self._batch([atoms]) for atoms in frames]
        return int(self.batches[0]["edge_index"].shape[1])

    def _batch(self, frames: list[Any]) -> dict[str, Any]:
        """Frames as one batch of MACE's tensors."""
        from mace import data, tools
        from mace.tools import torch_geometric

        table = tools.AtomicNumberTable(self.options["elements"])
        cutoff = self.options["cutoff"]
        graphs = [
            data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=table, cutoff=cutoff) for atoms in frames
        ]
        batch: dict[str, Any] = torch_geometric.Batch.from_data_list(graphs).to_dict()
        return batch

    def evaluate(self, path: str, k: int) -> None:
        """One evaluation; FloatingPointError when it gives numbers that are not finite."""
        frame = k % len(self.frames)
        if path == "calculator":
            self.atoms.positions = self.frames[frame]
            forces = self.atoms.get_forces()
            finite = np.isfinite(forces).all() and np.isfinite(self.atoms.get_potential_energy())
        elif path == "model":
            forces = self.model(self.batches[frame], compute_force=True)["forces"]
            finite = self.torch.isfinite(forces).all()
        else:
            finite = self._step()
        if not finite:
            raise FloatingPointError("the model returned numbers that are not finite")

    def _step(self) -> Any:
        """One training step on a squared loss of energies and forces; True when the loss is finite."""
        out = self.model(self.batch, training=True, compute_force=True)
        loss = (out["energy"] / self.sizes).square().mean() + out["forces"].square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return self.torch.isfinite(loss)
