"""The options that every training shares, declared once (type, default, help)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from .config import ConfigError, option


@dataclass(frozen=True)
class OptimizerOptions:
    """How gradients become weight changes."""

    name: Literal["adamw", "prodigy"] = option(
        "adamw", "adamw, or prodigy (finds its own step size; needs the package prodigyopt)"
    )
    lr: float | None = option(None, "peak learning rate; null: 0.02 for adamw, 1 for prodigy")
    weight_decay: float = option(1e-5, "decoupled weight decay of matrices; never of biases, scales and other 1-D")
    betas: list[float] = option([0.9, 0.99], "decay rates of the running mean and of the running square")
    amsgrad: bool = option(False, "AMSGrad variant (adamw only)")
    clip: float | None = option(10.0, "clip the global gradient norm to this; null: no clipping")

    def __post_init__(self) -> None:
        if self.lr is not None and self.lr <= 0:
            raise ConfigError(f"lr must be positive, got {self.lr}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must be two numbers in [0, 1), got {self.betas}")
        if self.weight_decay < 0 or (self.clip is not None and self.clip <= 0):
            raise ConfigError("weight_decay must be >= 0 and clip positive or null")
        if self.amsgrad and self.name != "adamw":
            raise ConfigError(f"amsgrad belongs to adamw, not to {self.name}")

    @property
    def peak_lr(self) -> float:
        return self.lr if self.lr is not None else {"adamw": 2e-2, "prodigy": 1.0}[self.name]


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate over the training; progress is the larger of epochs/epochs and time/max_time."""

    name: Literal["cosine", "linear", "plateau", "constant"] = option(
        "cosine", "cosine or linear to the final factor; plateau: reduce when val_loss stalls; constant"
    )
    warmup: float = option(0.01, "fraction of the training with linear warm-up from zero")
    final: float = option(0.01, "cosine, linear: last learning rate / peak; plateau: the lowest factor")
    factor: float = option(0.5, "plateau: multiply the learning rate by this")
    patience: int = option(10, "plateau: validations without improvement before a reduction")

    def __post_init__(self) -> None:
        for key in ("warmup", "final"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{key} must lie in [0, 1], got {getattr(self, key)}")
        if not 0 < self.factor < 1 or self.patience < 0:
            raise ConfigError(f"factor must lie in (0, 1) and patience be >= 0, got {self.factor}, {self.patience}")


@dataclass(frozen=True)
class TrainingOptions:
    """Length, precision, hardware and saving."""

    epochs: int = option(200, "passes over the training data")
    max_time: float | None = option(
        None, "minutes after which the training ends (schedules then also run by time); null: no limit"
    )
    seed: int = option(0, "seed of the initial weights, the split and the order of the data")
    device: str = option("cpu", "cpu, cuda or cuda:1; under torchrun every process takes its own GPU")
    precision: Literal["float32", "float64", "tf32", "bf16"] = option(
        "float32",
        "float32; float64 throughout; tf32: float32 with fast matrix products (GPU); bf16: autocast",
    )
    compile: bool | Literal["auto"] = option(
        "auto", "torch.compile the model, checked against eager gradients; auto: on a GPU, where it works"
    )
    threads: int | None = option(None, "CPU threads of torch; null: leave torch's setting")
    ema: float = option(0.999, "decay of the moving average of the weights that is validated and saved; 0: off")
    validate_every: int = option(1, "epochs between validations")
    stop_patience: int | None = option(None, "stop after this many validations without improvement; null: never")
    save_every: int = option(200, "steps between saves of the resumable state")
    shard_mb: float | None = option(
        None,
        "at each save also keep the averaged weights in RUN/weights, as bf16 in files of at most so many MB, from "
        "which model.init goes on in a further run; null: no",
    )
    tensorboard: bool = option(True, "write TensorBoard files to RUN/tb")

    def __post_init__(self) -> None:
        for key in ("epochs", "validate_every", "save_every"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.max_time is not None and self.max_time <= 0:
            raise ConfigError(f"max_time must be positive minutes or null, got {self.max_time}")
        if self.shard_mb is not None and self.shard_mb <= 0:
            raise ConfigError(f"shard_mb must be positive MB or null, got {self.shard_mb}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must lie in [0, 1), got {self.ema}")
        if self.threads is not None and not 1 <= self.threads <= (os.cpu_count() or 1) * 4:
            raise ConfigError(f"threads must lie between 1 and {(os.cpu_count() or 1) * 4}, got {self.threads}")
