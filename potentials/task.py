"""The training task of every energy model: loss over energy, forces and stress; errors in meV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..datasets.errors import UserError
from ..datasets.graph import Graph
from ..training.data import group_weights
from ..training.task import Losses, Task
from .base import EnergyAndGradient, Potential, energy_and_gradient, predict
from .compiled import COVERED, compile_gradient
from .loss import SCALES, TERMS, UNITS, Errors, LossOptions, errors_of, loss_terms

COMPILE_TOLERANCE = 1e-3  # relative error of the gradient of all weights
TRIALS = 3  # steps that are timed, eager and compiled


class CompileError(UserError):
    """torch.compile does not work for this model on this machine."""


class PotentialTask(Task):
    """Train a potential.

    Args:
        model: the potential, in its dtype.
        loss: the loss.
        weights: weight of structures by config_type.
        header: what goes into exported checkpoints besides the model's own facts (provenance, statistics).
    """

    model: Potential

    def __init__(
        self,
        model: Potential,
        loss: LossOptions,
        *,
        weights: Mapping[str, float] | None = None,
        header: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.model, self.loss, self.header = model, loss, dict(header or {})
        self.group_weights = dict(weights or {})
        self.evaluate: EnergyAndGradient = energy_and_gradient

    def losses(self, batch: Graph, *, training: bool) -> Losses:
        needed = [name for name in ("forces", "stress") if name in batch.labels]
        prediction = predict(
            self.model,
            batch,
            forces="forces" in needed,
            stress="auto" if "stress" in needed else False,
            create_graph=training,
            energy_and_gradient=self.evaluate,
        )
        errors = errors_of(prediction, batch)
        weights = group_weights(batch, self.group_weights)
        totals, counts = loss_terms(self.loss, errors, batch, weights)
        return Losses(totals, counts, error_sums(errors))

    def weights(self, progress: float) -> list[float]:
        return self.loss.weights(progress)

    def report(self, sums: Tensor) -> dict[str, float]:
        return error_report(sums)

    def summary(self, metrics: Mapping[str, float]) -> str:
        shown = [("energy", "E"), ("forces", "F"), ("stress", "S")]
        parts = [f"{k} {metrics[f'{n}_mae']:.3g} {UNITS[n]}" for n, k in shown if f"{n}_mae" in metrics]
        return "MAE " + "  ".join(parts)

    def export(self, path: str | Path, metrics: Mapping[str, float]) -> None:
        from . import save

        finite = {key: value for key, value in metrics.items() if abs(value) < float("inf")}
        save(self.model, path, {**self.header, "metrics": finite}, force=True)


def use_compiled(task: PotentialTask, batch: Graph) -> tuple[float, float]:
    """Let the task evaluate its model through torch.compile, after a trial on one batch.

    The trial compares the gradients of all weights with those of the eager model: a wrong double backward
    would not be noticed otherwise.

    Returns:
        Seconds of an eager and of a compiled step on the batch.

    Raises:
        CompileError: no test covers the architecture, it cannot be compiled here, or gives other gradients.
    """
    if task.model.architecture not in COVERED:
        raise CompileError(f"no test covers the compiled gradients of {task.model.architecture}")
    parameters = [p for p in task.parameters() if p.requires_grad]

    def gradients() -> list[Tensor]:
        losses = task.losses(batch, training=True)
        found = torch.autograd.grad(losses.totals.sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    eager, slow = gradients(), _seconds(gradients)
    task.evaluate = compile_gradient()
    try:
        compiled, fast = gradients(), _seconds(gradients)
    except Exception as error:  # whatever the compiler stumbles over
        task.evaluate = energy_and_gradient
        raise CompileError(f"torch.compile failed: {str(error).strip().splitlines()[0]}") from error
    size = torch.stack([g.norm() for g in eager]).norm()
    difference = torch.stack([(a - b).norm() for a, b in zip(eager, compiled, strict=True)]).norm() / size
    if not difference < COMPILE_TOLERANCE:
        task.evaluate = energy_and_gradient
        raise CompileError(f"compiled gradients differ from eager ones by {float(difference):.1e}")
    return slow, fast


def _seconds(step: Callable[[], list[Tensor]]) -> float:
    """The shortest of a few steps."""
    times = []
    for _ in range(TRIALS):
        start = perf_counter()
        float(step()[0].sum())  # waits for a GPU
        times.append(perf_counter() - start)
    return min(times)


def error_sums(errors: Errors) -> Tensor:
    """Sum of |x|, sum of x² and number of components of energy, forces and stress errors: ``(9,)`` float64."""
    device = next(iter(errors.values.values())).device
    sums = torch.zeros(9, dtype=torch.float64, device=device)
    with torch.no_grad():
        for start, name in enumerate(TERMS):
            if name not in errors.values:
                continue
            values = errors.values[name].detach()
            components = values[0].numel() if values.ndim > 1 and len(values) else 1
            sums[3 * start] = values.abs().sum(dtype=torch.float64)
            sums[3 * start + 1] = values.square().sum(dtype=torch.float64)
            sums[3 * start + 2] = errors.masks[name].sum() * components
    return sums


def error_report(sums: Tensor) -> dict[str, float]:
    """MAE and RMSE in the units of :data:`UNITS` from :func:`error_sums`; quantities without labels are absent."""
    report: dict[str, float] = {}
    for start, name in enumerate(TERMS):
        absolute, square, count = sums[3 * start : 3 * start + 3].tolist()
        if count > 0:
            report[f"{name}_mae"] = SCALES[name] * absolute / count
            report[f"{name}_rmse"] = SCALES[name] * (square / count) ** 0.5
    return report
