"""Functions of the training's progress p in [0, 1]: learning-rate factor, loss weights; and the plateau rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .config import ConfigError
from .options import ScheduleOptions

WeightSchedule = float | dict[float, float]


def learning_rate_factor(options: ScheduleOptions, progress: float) -> float:
    """Learning rate / peak at `progress` in [0, 1], without the plateau's reductions.

    warm-up: p / w for p < w; then for "cosine" f + (1 − f)(1 + cos πq) / 2 with q = (p − w) / (1 − w),
    w → options.warmup, f → options.final, for "linear" f + (1 − f)(1 − q); 1 for the others.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < options.warmup:
        return progress / options.warmup
    if options.name not in ("cosine", "linear") or options.warmup >= 1:
        return 1.0
    q = (progress - options.warmup) / (1 - options.warmup)
    fall = 1 - q if options.name == "linear" else 0.5 * (1 + math.cos(math.pi * q))
    return options.final + (1 - options.final) * fall


def weight_at(schedule: WeightSchedule, progress: float) -> float:
    """A loss weight at `progress`: a constant, or steps {start: weight} of which the last started one holds."""
    if not isinstance(schedule, Mapping):
        return float(schedule)
    started = [start for start in schedule if start <= progress]
    return float(schedule[max(started)])


def check_weight(name: str, schedule: WeightSchedule) -> None:
    """ConfigError unless weights are >= 0 and the steps begin at 0 and lie in [0, 1)."""
    steps = schedule if isinstance(schedule, Mapping) else {0.0: schedule}
    if not steps or min(steps) != 0 or max(steps) >= 1:
        raise ConfigError(f"{name}: steps must begin at 0 and lie below 1, as in {{0: 1, 0.75: 10}}; got {schedule}")
    if any(not math.isfinite(weight) or weight < 0 for weight in steps.values()):
        raise ConfigError(f"{name}: weights must be >= 0, got {schedule}")


@dataclass
class Plateau:
    """Reduce a factor when the watched number has not improved for `patience` validations."""

    options: ScheduleOptions
    best: float = math.inf
    waited: int = 0
    factor: float = 1.0

    def update(self, value: float) -> None:
        """Take note of one validation."""
        if value < self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.options.name == "plateau" and self.waited > self.options.patience:
            self.factor = max(self.factor * self.options.factor, self.options.final)
            self.waited = 0

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "waited": self.waited, "factor": self.factor}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best, self.waited, self.factor = state["best"], int(state["waited"]), state["factor"]
