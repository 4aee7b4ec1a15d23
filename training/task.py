"""The task of a training (model, loss, numbers to report) and one step of it, with torch alone.

A room writes a :class:`Task`; the :class:`Trainee` turns it into steps: backward, global sums, clipping, schedule,
optimiser, moving average. :mod:`.fit` runs a trainee under Lightning; a bare loop may call :meth:`Trainee.step`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import distributed
from .ema import MovingAverage
from .optimizers import build_optimizer
from .options import OptimizerOptions, ScheduleOptions, TrainingOptions
from .schedule import Plateau, learning_rate_factor

TINY = 1e-12  # a term without labelled entries in a batch has total 0 and counts for nothing


@dataclass
class Losses:
    """What a task says of one batch.

    Attributes:
        totals: ``(T,)`` sums of the loss terms over their labelled entries, differentiable.
        counts: ``(T,)`` numbers of labelled entries; a term's loss is total / count, both summed over processes.
        sums: ``(M,)`` detached sums from which :meth:`Task.report` makes the reported numbers.
    """

    totals: Tensor
    counts: Tensor
    sums: Tensor


class Task(nn.Module, ABC):
    """What is trained: a model, its loss terms, and how sums over batches become reported numbers.

    Randomness inside a task must come from torch's global generators: their state is saved for exact resume.
    """

    model: nn.Module

    @abstractmethod
    def losses(self, batch: Any, *, training: bool) -> Losses:
        """Evaluate the model on a batch; `training` False needs no gradient of the weights."""

    @abstractmethod
    def weights(self, progress: float) -> list[float]:
        """Weights of the T loss terms at `progress` in [0, 1]; at 1 those of the validation loss."""

    @abstractmethod
    def report(self, sums: Tensor) -> dict[str, float]:
        """Numbers to show and log from `sums` ``(M,)`` added up over batches and processes."""

    @abstractmethod
    def summary(self, metrics: Mapping[str, float]) -> str:
        """A few words for the progress bar and the line per epoch."""

    @abstractmethod
    def export(self, path: Any, metrics: Mapping[str, float]) -> None:
        """Write the model as it is now (the caller has put the averaged weights in) to a checkpoint file."""


@dataclass
class Progress:
    """Where a training stands; saved with every state."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    elapsed: float = 0.0
    best: float = float("inf")
    best_epoch: int = -1
    waited: int = 0
    finished: bool = False

    def fraction(self, training: TrainingOptions, n_batches: int) -> float:
        """Progress in [0, 1]: the larger share of the epochs and of the time (seconds) used up."""
        done = (self.epoch + self.batch / max(n_batches, 1)) / training.epochs
        if training.max_time is not None:
            done = max(done, self.elapsed / (60 * training.max_time))
        return min(done, 1.0)


class Trainee:
    """A task with its optimiser, schedule and moving average; state in, state out, no Lightning.

    Args:
        task: on its device and in its dtype already.
        training, optimizer, schedule: the options.
    """

    def __init__(self, task: Task, training: TrainingOptions, optimizer: OptimizerOptions, schedule: ScheduleOptions):
        self.task = task
        self.training, self.optimizer_options, self.schedule = training, optimizer, schedule
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(task, optimizer)
        self.average = MovingAverage(task, training.ema)
        self.plateau = Plateau(schedule)
        self.progress = Progress()
        self.sums: Tensor | None = None

    def step(self, batch: Any, n_batches: int) -> Tensor:
        """One optimiser step on a batch; returns the global loss, detached, on the batch's device.

        Args:
            batch: what the task's `losses` takes, on the right device.
            n_batches: batches of the present epoch, for the schedules.
        """
        now = self.progress.fraction(self.training, n_batches)
        with self._autocast():
            losses = self.task.losses(batch, training=True)
        counts = distributed.summed(losses.counts).clamp(min=TINY)
        weights = torch.tensor(self.task.weights(now), dtype=losses.totals.dtype, device=losses.totals.device)
        loss = (weights * losses.totals / counts).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=[p for p in self.parameters if p.requires_grad])
        distributed.sum_gradients(self.parameters)
        if self.optimizer_options.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.optimizer_options.clip)
        rate = self.optimizer_options.peak_lr * self.plateau.factor * learning_rate_factor(self.schedule, now)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update()
        self.sums = losses.sums if self.sums is None else self.sums + losses.sums
        self.progress.batch += 1
        self.progress.step += 1
        return distributed.summed(loss.detach())

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def train_report(self) -> dict[str, float]:
        """The task's numbers over the batches of this epoch so far (a collective call)."""
        return {} if self.sums is None else self.task.report(distributed.summed(self.sums))

    def validate(self, batch: Any) -> Tensor:
        """Totals, counts and sums of one batch as one float64 vector ``(2 T + M,)``, to be added up."""
        with torch.enable_grad(), self._autocast():
            losses = self.task.losses(batch, training=False)
        return torch.cat([losses.totals.detach().double(), losses.counts.double(), losses.sums.double()])

    def validation_report(self, added: Tensor) -> dict[str, float]:
        """Numbers of a validation from the added vectors of :meth:`validate`, summed over processes here."""
        vector = distributed.summed(added)
        weights = torch.tensor(self.task.weights(1.0), dtype=vector.dtype, device=vector.device)
        n = len(weights)
        loss = (weights * vector[:n] / vector[n : 2 * n].clamp(min=TINY)).sum()
        return {"loss": float(loss), **self.task.report(vector[2 * n :])}

    def note_validation(self, loss: float) -> bool:
        """Take a validation loss into the plateau rule and the best mark; True if it is the best so far."""
        self.plateau.update(loss)
        progress = self.progress
        if loss < progress.best:
            progress.best, progress.best_epoch, progress.waited = loss, progress.epoch, 0
            return True
        progress.waited += 1
        return False

    def next_epoch(self) -> None:
        """Move to the first batch of the next epoch."""
        self.progress.epoch += 1
        self.progress.batch = 0
        self.sums = None

    def state_dict(self) -> dict[str, Any]:
        """Everything but weights and optimiser, which Lightning saves itself."""
        return {
            "progress": asdict(self.progress),
            "average": self.average.state_dict(),
            "plateau": self.plateau.state_dict(),
            "sums": self.sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self.average.load_state_dict(state["average"])
        self.plateau.load_state_dict(state["plateau"])
        self.sums = state["sums"]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.training.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.parameters[0].device.type, dtype=torch.bfloat16)
