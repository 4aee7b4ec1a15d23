"""The part that knows Lightning: the module around a trainee, the state file, the process strategy.

Imported by :func:`.fit.fit` only, because importing Lightning takes seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from ..datasets.errors import UserError
from . import distributed
from .checkpoint import STATE_FORMAT, read_checkpoint, write_checkpoint, write_shards
from .interrupt import StopSignals
from .records import Records
from .state import STATE_NAME, flatten, random_state, seed_generators, set_random_state, unflatten
from .task import Trainee

AGREE_EVERY = 10  # steps between agreements of all processes on time and signals


class TrainingDivergedError(UserError):
    """The loss or the weights are no longer finite."""


class SafetensorsIO(CheckpointIO):
    """Lightning's checkpoint dictionary as safetensors + JSON; nothing is pickled or unpickled."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        data, tensors = flatten(checkpoint)
        write_checkpoint(path, tensors, {"format": STATE_FORMAT, "state": data}, force=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        header, tensors = read_checkpoint(path, expect=STATE_FORMAT)
        state: dict[str, Any] = unflatten(header["state"], tensors)
        return state

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class ProcessStrategy(DDPStrategy):
    """Processes of a `torchrun` without the DistributedDataParallel wrapper: the trainee sums its gradients."""

    def configure_ddp(self) -> None:
        distributed.broadcast_parameters(self.model)  # type: ignore[arg-type]


class EpochView:
    """The training loader as Lightning sees it: an iterable without length, from the trainee's position on."""

    def __init__(self, loader: Any, trainee: Trainee):
        self.loader, self.trainee = loader, trainee

    def __iter__(self) -> Iterator[Any]:
        self.loader.seek(self.trainee.progress.epoch, self.trainee.progress.batch)
        return iter(self.loader)


class LightningTask(pl.LightningModule):
    """Hands Lightning's hooks on to a :class:`Trainee`; owns saving, validation, stopping and the records.

    Args:
        trainee: the state of the training.
        train_loader: has `seek(epoch, batch)`, `len` (batches of the present epoch) and iteration.
        validation_loader: iterated from its beginning at every validation, or None.
        folder: the run folder.
        records: None until the training starts.
        stop: says whether a signal asks to stop.
    """

    def __init__(
        self,
        trainee: Trainee,
        train_loader: Any,
        validation_loader: Any,
        folder: Path,
        stop: StopSignals,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.task = trainee.task
        self.trainee, self.folder, self.stop = trainee, folder, stop
        self.train_loader, self.validation_loader = train_loader, validation_loader
        self.records: Records
        self.interrupted = False
        self.saved_step = 0
        self.started = time.monotonic()
        self.n_batches = 0
        self.metrics: dict[str, Any] = {}

    @property
    def state_path(self) -> Path:
        return self.folder / STATE_NAME

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.trainee.optimizer

    def on_train_start(self) -> None:
        self.stop.install()
        progress, training = self.trainee.progress, self.trainee.training
        self.started = time.monotonic() - progress.elapsed
        self.saved_step = progress.step
        self.records = Records(
            self.folder,
            active=distributed.rank() == 0,
            tensorboard=training.tensorboard,
            first_epoch=progress.epoch,
            first_step=progress.step,
        )
        self.records.start_bar(training.epochs, progress.epoch)
        if progress.step == 0:
            seed_generators(training.seed + distributed.rank())  # each process draws its own noise
        else:
            self.records.say(f"continued from step {progress.step} in epoch {progress.epoch + 1}/{training.epochs}")

    def on_train_epoch_start(self) -> None:
        self.n_batches = len(self.train_loader)
        self.task.train()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.trainee.step(batch, self.n_batches)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainee, progress = self.trainee, self.trainee.progress
        out_of_time = self._agree_on_stopping()
        if self.records.wants_bar:
            done = progress.epoch + progress.batch / self.n_batches
            self.records.show(done, trainee.task.summary(trainee.train_report()))
        epoch_ends = progress.batch >= self.n_batches
        if not epoch_ends and (self.interrupted or out_of_time or self._save_is_due()):
            self.save_state()
        if self.interrupted or out_of_time:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        trainee, progress, training = self.trainee, self.trainee.progress, self.trainee.training
        whole = progress.batch >= self.n_batches
        if self.interrupted and not whole:
            return
        self._check_finite()
        last = whole and progress.epoch + 1 >= training.epochs
        if (progress.epoch + 1) % training.validate_every == 0 or last or self.trainer.should_stop:
            row = self._validate()
            patience = training.stop_patience
            progress.finished = last or (whole and patience is not None and progress.waited >= patience)
            if progress.finished or self.trainer.should_stop:
                self.trainer.should_stop = True
                self._export("model.safetensors", row)
            self._record(row)
        if whole:
            trainee.next_epoch()
            if self.trainer.should_stop or self._save_is_due():
                self.save_state()

    def on_train_end(self) -> None:
        self.records.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace Lightning's loop counters by our own position, which is exact in the middle of an epoch too."""
        checkpoint.pop("loops", None)
        checkpoint["trainee"] = self.trainee.state_dict()
        checkpoint["random"] = random_state()
        if hasattr(self.train_loader, "state_dict"):
            checkpoint["loader"] = self.train_loader.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trainee.load_state_dict(checkpoint["trainee"])
        if "loader" in checkpoint:
            self.train_loader.load_state_dict(checkpoint["loader"])
        set_random_state(checkpoint["random"])
        current: Any = self.trainer.fit_loop.epoch_progress.current
        current.ready = current.started = current.processed = current.completed = self.trainee.progress.epoch

    def save_state(self) -> None:
        """Write the resumable state, unless the training has diverged: the last good state then stays."""
        self._check_finite()
        self.trainer.save_checkpoint(self.state_path)
        self.saved_step = self.trainee.progress.step
        if self.trainee.training.shard_mb is not None:
            self._export_shards(self.trainee.training.shard_mb)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def _save_is_due(self) -> bool:
        return self.trainee.progress.step - self.saved_step >= self.trainee.training.save_every

    def _agree_on_stopping(self) -> bool:
        """Note elapsed time and signals, the same in all processes; True when the time is used up."""
        progress, limit = self.trainee.progress, self.trainee.training.max_time
        elapsed, asked = time.monotonic() - self.started, self.stop.asked
        if distributed.world_size() > 1:
            if progress.step % AGREE_EVERY and progress.batch < self.n_batches:
                return False
            mine = [float(asked), elapsed if distributed.rank() == 0 else 0.0]
            votes = distributed.summed(torch.tensor(mine, dtype=torch.float64, device=self.device))
            asked, elapsed = bool(votes[0] > 0), float(votes[1])
        progress.elapsed = elapsed
        self.interrupted = asked
        return limit is not None and elapsed >= 60 * limit

    def _check_finite(self) -> None:
        sums = self.trainee.sums
        if sums is not None and not bool(torch.isfinite(distributed.summed(sums)).all()):
            raise TrainingDivergedError(
                f"the training diverged in epoch {self.trainee.progress.epoch}: errors are no longer finite; the "
                "last good state is kept. Lower optimizer.lr, set optimizer.clip, or look for outliers with "
                "`tesseral data check`"
            )

    def _validate(self) -> dict[str, Any]:
        """The numbers of this epoch; keeps the averaged weights if they are the best so far."""
        trainee, progress = self.trainee, self.trainee.progress
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "time_s": round(time.monotonic() - self.started, 3),
            "lr": trainee.learning_rate,
            **{f"train_{key}": value for key, value in trainee.train_report().items()},
        }
        if self.validation_loader is not None:
            self.task.eval()
            with trainee.average.applied():
                report = self._validation()
            self.task.train()
            row.update({f"val_{key}": value for key, value in report.items()})
            if trainee.note_validation(report["loss"]):
                self._export("best.safetensors", row)
        return row

    def _export(self, name: str, row: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            with self.trainee.average.applied():
                self.task.export(self.folder / name, row)

    def _export_shards(self, max_mb: float) -> None:
        """The averaged weights as small files, beside the full state."""
        if distributed.rank() != 0:
            return
        whole, progress = self.folder / ".weights.safetensors", self.trainee.progress
        row = {**self.metrics, "epoch": progress.epoch, "step": progress.step}
        self._export(whole.name, row)
        header, tensors = read_checkpoint(whole)
        write_shards(self.folder / "weights", tensors, header, max_mb=max_mb, force=True)
        whole.unlink()

    def _record(self, row: dict[str, Any]) -> None:
        progress, part = self.trainee.progress, "train" if self.validation_loader is None else "val"
        shown = {key.removeprefix(f"{part}_"): value for key, value in row.items() if key.startswith(part)}
        mark = "  best" if progress.best_epoch == progress.epoch else ""
        self.records.epoch(
            row,
            f"epoch {row['epoch']}/{self.trainee.training.epochs}  {part} {self.task.summary(shown)}{mark}"
            f"  lr {row['lr']:.2e}  {row['time_s']:.0f} s",
        )
        self.metrics = row

    def _validation(self) -> dict[str, float]:
        added: torch.Tensor | None = None
        for batch in self.validation_loader:
            vector = self.trainee.validate(batch.to(self.device))
            added = vector if added is None else added + vector
        if added is None:
            raise UserError("the validation data have no frames")
        return self.trainee.validation_report(added)


def build_trainer(trainee: Trainee, folder: Path) -> pl.Trainer:
    """A bare Lightning trainer: one process, or this process's part of a `torchrun`."""
    device = trainee.parameters[0].device
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    several = world > 1
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=local if several else ([device.index or 0] if device.type == "cuda" else 1),
        num_nodes=world // local if several else 1,
        strategy=ProcessStrategy() if several else "auto",
        plugins=[SafetensorsIO()],
        max_epochs=trainee.training.epochs,
        default_root_dir=folder,
        inference_mode=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
