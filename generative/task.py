"""The training task of EQGAT-diff: predict the clean molecule, one weighted term per variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..training.config import ConfigError, option
from ..training.task import Losses, Task
from .eqgat import Prediction
from .layout import Layout
from .model import EqgatDiff
from .molecules import Molecules
from .streams import Streams

COMPILE_TOLERANCE = 1e-3  # of the gradient's norm
TERM_WEIGHTS = {"element": 0.4, "charge": 1.0, "ring": 0.5, "aromatic": 0.7, "hybridisation": 1.0}


@dataclass(frozen=True)
class LossOptions:
    """Weights of the loss terms; the published ones are the defaults."""

    positions: float = option(3.0, "weight of the mean square error of coordinates, Å²")
    bonds: float = option(2.0, "weight of the cross-entropy of bonds")
    atoms: dict[str, float] = option(
        {}, "weights of the cross-entropies of atoms' variables, where not {element: 0.4, charge: 1, …}"
    )

    def __post_init__(self) -> None:
        if min(self.positions, self.bonds, *self.atoms.values()) < 0:
            raise ConfigError("weights of the loss must be >= 0")

    def of(self, variables: tuple[str, ...]) -> list[float]:
        """Weights of coordinates, each variable of an atom, bonds."""
        weights = {**TERM_WEIGHTS, **self.atoms}
        unknown = set(self.atoms) - set(variables)
        if unknown:
            raise ConfigError(f"loss.atoms: the data have no {sorted(unknown)[0]!r}, only {', '.join(variables)}")
        return [self.positions, *(weights.get(name, 1.0) for name in variables), self.bonds]


class GeneratorTask(Task):
    """Train a generator.

    Each molecule gets a random time; the loss is the mean over molecules of w(t) Σ_k weight_k L_k, with
    L_pos = mean over atoms and axes of (x̂ − x)², L_var = mean over atoms of the cross-entropy, L_bond = half the mean
    over ordered pairs. The published sum over molecules differs by the batch size.

    Args:
        model: the generator, in its dtype.
        loss: weights of the terms.
        header: what goes into exported checkpoints besides the model's own facts.
    """

    model: EqgatDiff

    def __init__(
        self, model: EqgatDiff, loss: LossOptions | None = None, *, header: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.header = model, dict(header or {})
        self.variables = tuple(model.vocabulary.atoms)
        self.measure = "rmsd" if model.config.diffusion.target == "data" else "noise_rms"
        self.term_weights = (loss or LossOptions()).of(self.variables)

    def losses(self, batch: Molecules, *, training: bool) -> Losses:
        n, diffusion = batch.layout.n_molecules, self.model.diffusion
        device = batch.positions.device
        numbers = torch.arange(n, device=device)
        if training:  # torch's global generator gives the seed: it is part of the saved state
            streams = Streams(int(torch.randint(2**62, (1,))), numbers)
            time = 1 + (streams.uniform(numbers, numbers * 0) * diffusion.config.steps).long()
        else:  # the same noise in each validation, times spread evenly
            streams = Streams(0, numbers)
            time = 1 + (diffusion.config.steps * (2 * numbers + 1)) // (2 * n)
        with torch.no_grad():
            if training and batch.pockets is not None:
                batch = replace(batch, pockets=batch.pockets.jittered(streams))
            noisy = diffusion.noised(batch, time, streams)
        prediction = self.model(self._with_estimate(noisy, time, training), time)
        terms = batch.weight * per_molecule(prediction, batch, diffusion.position_weights(time))
        totals = (terms * diffusion.weights[time].unsqueeze(1)).sum(0)
        counts = torch.full_like(totals, batch.weight * n)
        sums = torch.cat([terms.detach().sum(0), hits(prediction, batch), counts[:1]])
        return Losses(totals, counts.detach(), sums.double())

    def _with_estimate(self, noisy: Molecules, time: Tensor, training: bool) -> Molecules:
        """With the model's first estimate, if it conditions on one; in half of the training steps without."""
        if not self.model.config.self_conditioning or (training and bool(torch.rand(()) < 0.5)):
            return noisy
        with torch.no_grad():
            return replace(noisy, estimate=self.model(noisy, time))

    def weights(self, progress: float) -> list[float]:
        return self.term_weights

    def report(self, sums: Tensor) -> dict[str, float]:
        """Mean errors: RMS of coordinates in Å (or of their noise), share of right classes of atoms and bonds."""
        values, k = sums.tolist(), len(self.variables)
        n = max(values[-1], 1e-12)
        right = values[k + 2 :]
        report = {self.measure: (3 * values[0] / n) ** 0.5}
        for name, (hit, count) in zip((*self.variables, "bond"), _pairs(right[:-1]), strict=True):
            report[f"{name}_accuracy"] = hit / max(count, 1.0)
        return report

    def summary(self, metrics: Mapping[str, float]) -> str:
        accuracies = [f"{name} {100 * metrics[f'{name}_accuracy']:.1f}%" for name in (*self.variables, "bond")]
        name = "rmsd" if self.measure == "rmsd" else "noise rms"
        return f"{name} {metrics[self.measure]:.3f} Å  right " + "  ".join(accuracies)

    def export(self, path: str | Path, metrics: Mapping[str, float]) -> None:
        from . import save

        finite = {key: value for key, value in metrics.items() if abs(value) < float("inf")}
        save(self.model, path, {**self.header, "training_metrics": finite}, force=True)


def compile_network(task: GeneratorTask, batch: Molecules) -> None:
    """Let the task's network run through torch.compile, for any size, after a trial on one batch.

    The trial compares the gradients of all weights with those of the eager network, at the same noise.

    Raises:
        ConfigError: it cannot be compiled here, or gives other gradients; the network is eager then.
    """
    parameters = [p for p in task.parameters() if p.requires_grad]

    def gradient() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses = task.losses(batch, training=True)
        found = torch.autograd.grad(losses.totals.sum(), parameters, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    eager = gradient()
    try:
        task.model.network.compile(dynamic=True)
        compiled = gradient()
        difference = float((compiled - eager).norm() / eager.norm())
        problem = None if difference < COMPILE_TOLERANCE else f"gradients differ by {difference:.1e}"
    except Exception as error:  # whatever the compiler stumbles over
        problem = str(error).strip().splitlines()[0]
    if problem:
        task.model.network._compiled_call_impl = None
        raise ConfigError(f"training.compile=true: {problem}; set training.compile=false")


def per_molecule(prediction: Prediction, clean: Molecules, scale: Tensor | None = None) -> Tensor:
    """Loss terms ``(G, K + 2)`` of each molecule, without weights: coordinates (Å²), variables of atoms, bonds.

    `scale` ``(G,)`` multiplies the error of coordinates: see :meth:`.diffusion.Diffusion.position_weights`.
    """
    layout = clean.layout
    square = (prediction.positions - clean.positions).square().mean(-1)
    if scale is not None:
        square = square * scale.to(square.dtype)[layout.batch]
    atoms = [
        cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, classes, reduction="none")
        for logits, classes in zip(prediction.atoms, clean.atoms.unbind(1), strict=True)
    ]
    logits = prediction.bonds.float() if prediction.bonds.dtype == torch.bfloat16 else prediction.bonds
    bonds = cross_entropy(logits, clean.bonds[layout.pairs], reduction="none")
    per_atom = torch.stack([square, *atoms], 1)
    n_pairs = layout.n_atoms * (layout.n_atoms - 1) // 2
    of_atoms = _molecule_means(layout, per_atom, layout.batch, layout.n_atoms)
    of_bonds = _molecule_means(layout, bonds.unsqueeze(1), layout.edge_batch[layout.pairs], n_pairs)
    return torch.cat([of_atoms, 0.5 * of_bonds], 1)


def hits(prediction: Prediction, clean: Molecules) -> Tensor:
    """Right classes and how many there are, of each variable of atoms and of bonds: ``(2 (K + 1),)``."""
    found = []
    pairs = clean.bonds[clean.layout.pairs]
    for logits, classes in (
        *zip(prediction.atoms, clean.atoms.unbind(1), strict=True),
        (prediction.bonds, pairs),
    ):
        right = (logits.detach().argmax(-1) == classes).sum() if len(classes) else classes.sum()
        found += [right.double() * clean.weight, right.new_tensor(len(classes)).double() * clean.weight]
    return torch.stack(found)


def _molecule_means(layout: Layout, values: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    total = values.new_zeros(layout.n_molecules, values.shape[1]).index_add(0, index, values)
    return total / counts.clamp(min=1).unsqueeze(1)


def _pairs(values: list[float]) -> list[tuple[float, float]]:
    return list(zip(values[::2], values[1::2], strict=True))
