"""Run a task to its end under Lightning, with exact resume and clean interruption."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .config import ConfigError
from .interrupt import StopSignals
from .options import OptimizerOptions, ScheduleOptions, TrainingOptions
from .state import STATE_NAME, torch_settings
from .task import Task, Trainee


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the training; its state is saved and `--resume` continues it."""


def fit(
    task: Task,
    train_loader: Any,
    validation_loader: Any,
    folder: str | Path,
    *,
    training: TrainingOptions,
    optimizer: OptimizerOptions,
    schedule: ScheduleOptions,
    resume: bool = False,
) -> dict[str, Any]:
    """Train `task` until epochs, time or patience are used up; returns the last row of numbers.

    The folder receives metrics.csv, tb/, last.state.safetensors (resumable), best.safetensors (lowest validation
    loss) and, at the end, model.safetensors (last weights); both hold the averaged weights.

    Args:
        task: in its dtype; moved to the device of `training` here.
        train_loader: `seek(epoch, batch)`, `len` = batches of the present epoch, iteration; state_dict pair.
        validation_loader: iterated anew at each validation, or None.
        folder: the run folder.
        training, optimizer, schedule: options.
        resume: continue from the folder's state.

    Raises:
        ConfigError: no state to resume from.
        TrainingDivergedError: errors are no longer finite.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    folder = Path(folder)
    state = folder / STATE_NAME
    if resume and not state.exists():
        raise ConfigError(f"{folder} has no {STATE_NAME} to resume from; start it without --resume")
    from .loop import EpochView, LightningTask, build_trainer

    settings = torch_settings(threads=training.threads, precision=training.precision)
    with settings, _quiet(), StopSignals() as stop:
        trainee = Trainee(task.to(device_of(training)), training, optimizer, schedule)
        module = LightningTask(trainee, train_loader, validation_loader, folder, stop)
        trainer = build_trainer(trainee, folder)
        trainer.fit(module, EpochView(train_loader, trainee), ckpt_path=str(state) if resume else None)
        if module.interrupted:
            raise Interrupted(f"stopped; {state} holds the state, --resume continues it")
        return module.metrics


def device_of(training: TrainingOptions) -> torch.device:
    """The device of this process: `training.device`, or this process's own GPU under torchrun.

    Raises:
        ConfigError: no such device here.
    """
    usable = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    try:
        device = torch.device(training.device)
    except RuntimeError:
        device = None
    if device is not None and device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    known = device is not None and (str(device) in usable or (str(device) == "cuda" and len(usable) > 1))
    if device is None or not known:
        raise ConfigError(f"training.device={training.device}: usable here are {', '.join(usable)}")
    return device


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice and banners off the user's screen; its errors still show."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
