"""From a configuration to a trained Hamiltonian network: label files, model or start weights, training, test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...training.checkpoint import read_checkpoint, write_checkpoint
from ...training.config import ConfigError, option, to_dict
from ...training.data import distributed_rank, distributed_world_size
from ...training.fit import device_of, fit
from ...training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from ...training.run_folder import check_same, package_versions, start_folder
from ...training.state import seed_generators, torch_settings
from .base import HamiltonianModel
from .data import HamiltonianData, HamiltonianLoader, LabelSet, Samples, split
from .task import HamiltonianTask, LossOptions

SCHEDULE_SHARE = 0.05  # of all steps: the epoch of the gates' schedule where the configuration names none


@dataclass(frozen=True)
class HamiltonianNetwork:
    """Which model."""

    architecture: Literal["sphnet", "qhnet"] = option("sphnet", "sphnet or qhnet (ignored with init)")
    config: dict[str, Any] = option(
        {}, "hyper-parameters: {preset: small}, and what differs from the preset: {channels: 64, sparsity: 0.5}"
    )
    target: Literal["delta", "full", "orthogonal"] = option(
        "delta",
        "learn the difference to the guess (published), the whole matrix, or the difference in orthogonalised "
        "orbitals, whose errors no small overlap amplifies: the choice for SCF starts",
    )
    init: str | None = option(None, "start weights: a checkpoint file or shipped model; null: fresh weights")
    twin: bool = option(False, "sphnet: train its dense twin, too, with equal data and steps: RUN/dense, RUN/sparse")


@dataclass(frozen=True)
class HamiltonianTraining:
    """The whole configuration of `tesseral train` for a Hamiltonian network; defaults as published for SPHNet."""

    run: str = option("runs/hamiltonian", "folder that the training writes")
    model: HamiltonianNetwork = option(HamiltonianNetwork(), "the model")
    data: HamiltonianData = option(HamiltonianData(), "the data")
    loss: LossOptions = option(LossOptions(), "the loss")
    optimizer: OptimizerOptions = option(
        OptimizerOptions(lr=1e-3, weight_decay=0.0, betas=[0.9, 0.99], clip=5.0), "the optimiser"
    )
    schedule: ScheduleOptions = option(ScheduleOptions(name="linear", warmup=0.005, final=1e-4), "the learning rate")
    training: TrainingOptions = option(TrainingOptions(ema=0.0), "length, precision, hardware, saving")


def train(config: HamiltonianTraining, *, resume: bool = False, force: bool = False) -> dict[str, Any]:
    """Train a Hamiltonian network as the configuration says; returns the last numbers and test errors.

    Raises:
        UserError: whatever is wrong with configuration or data, before any training starts.
        Interrupted: Ctrl-C or SIGTERM, with the state saved.
    """
    if config.model.twin:
        return _twins(config, resume=resume, force=force)
    folder = Path(config.run)
    device_of(config.training)
    if config.training.compile is True:
        raise ConfigError("training.compile: Hamiltonian networks run on kernels of their own; leave it at auto")
    if resume:
        check_same(config, folder)
    with torch_settings(threads=config.training.threads, precision=config.training.precision):
        seed_generators(config.training.seed)
        train_set, chosen, validation = _open(config)
        test = LabelSet.open(config.data.test) if config.data.test else None
        if test is not None:
            test.level.require_same(train_set.level, "data.test", "data.train")
        steps = config.training.epochs * _batches(config, train_set, chosen)
        model = _model(config, train_set, steps)
        shape: dict[str, Any] = {"target": model.target, "dtype": model.dtype, "orbitals": config.loss.orbitals}
        samples = Samples(train_set, chosen, model.layout, **shape)
        if config.model.init is None and not resume:
            model.scales.copy_(samples.scales())
        if distributed_rank() == 0 and not resume:
            start_folder(config, folder, force=force)
        print(f"{len(chosen)} molecules to learn, {_count(validation)} to validate: {train_set.level}")
        task = HamiltonianTask(model, config.loss, header=_header(config, train_set, chosen))
        loader = _loader(config, samples, shuffle=True)
        checks = None
        if validation is not None:
            checks = _loader(config, Samples(validation[0], validation[1], model.layout, **shape), shuffle=False)
        metrics = fit(
            task,
            loader,
            checks,
            folder,
            training=config.training,
            optimizer=config.optimizer,
            schedule=config.schedule,
            resume=resume,
        )
        result: dict[str, Any] = {"folder": str(folder), "metrics": metrics}
        if test is not None and distributed_rank() == 0:
            result["test"] = _test(folder, test, model.device)
        return result


def _twins(config: HamiltonianTraining, *, resume: bool, force: bool) -> dict[str, Any]:
    """The dense and the sparse network one after the other; everything else is equal."""
    if config.model.architecture != "sphnet" or config.model.init is not None:
        raise ConfigError("model.twin belongs to a fresh sphnet")
    results: dict[str, Any] = {}
    for name, changes in (("dense", {"sparsity": 0.0}), ("sparse", {})):
        model = replace(config.model, twin=False, config={**config.model.config, **changes})
        folder = Path(config.run) / name
        print(f"{name}: {folder}")
        going_on = resume and folder.exists()
        results[name] = train(replace(config, run=str(folder), model=model), resume=going_on, force=force)
    return {"folder": config.run, "metrics": results["sparse"]["metrics"], **results}


def _count(part: tuple[LabelSet, np.ndarray] | None) -> int:
    return 0 if part is None else len(part[1])


def _open(config: HamiltonianTraining) -> tuple[LabelSet, np.ndarray, tuple[LabelSet, np.ndarray] | None]:
    """Label files, which labels to learn from, and those to validate with."""
    if not config.data.train:
        raise ConfigError("data.train is missing: name at least one label file of `tesseral data hamiltonian`")
    train_set = LabelSet.open(config.data.train)
    chosen, drawn = split(len(train_set), config.data, config.training.seed)
    if isinstance(config.data.val, float):
        return train_set, chosen, (train_set, drawn) if len(drawn) else None
    if not config.data.val:
        return train_set, chosen, None
    validation = LabelSet.open(config.data.val)
    validation.level.require_same(train_set.level, "data.val", "data.train")
    return train_set, chosen, (validation, np.arange(len(validation)))


def _batches(config: HamiltonianTraining, labels: LabelSet, chosen: np.ndarray) -> int:
    """Batches of an epoch, about: what the gates' schedule is measured with."""
    pairs = labels.n_atoms[chosen] * (labels.n_atoms[chosen] - 1) // 2
    by_size = 1 if config.data.max_pairs is None else int(np.ceil(pairs.sum() / config.data.max_pairs))
    return max(1, by_size, int(np.ceil(len(chosen) / (config.data.batch_size or len(chosen)))))


def _model(config: HamiltonianTraining, labels: LabelSet, steps: int) -> HamiltonianModel:
    """A fresh model, or the start weights; in its dtype."""
    from . import load
    from .level import Level
    from .networks import build

    dtype = torch.float64 if config.training.precision == "float64" else torch.float32
    torch.manual_seed(config.training.seed)
    if config.model.init is None:
        hyper = dict(config.model.config)
        if config.model.architecture == "sphnet":
            hyper.setdefault("epoch", max(1, round(SCHEDULE_SHARE * steps)))
        return build(config.model.architecture, hyper, labels.layout, config.model.target).to(dtype)
    if config.model.config:
        raise ConfigError("model.config and model.init exclude each other: the start weights bring their own")
    start = load(config.model.init)
    if "level" in start.card:
        stated = Level.from_header(start.card["level"], str(config.model.init))
        stated.require_same(labels.level, str(config.model.init), "data.train")
    start.layout.require(labels.layout.elements, str(config.model.init))
    return start.to(dtype).train()


def _loader(config: HamiltonianTraining, samples: Samples, *, shuffle: bool) -> HamiltonianLoader:
    return HamiltonianLoader(
        samples,
        batch_size=config.data.batch_size,
        max_pairs=config.data.max_pairs,
        shuffle=shuffle,
        seed=config.training.seed,
        rank=distributed_rank(),
        world_size=distributed_world_size(),
    )


def _header(config: HamiltonianTraining, labels: LabelSet, chosen: np.ndarray) -> dict[str, Any]:
    """What a checkpoint keeps of its training; names of files without their folders."""
    sections = {name: to_dict(getattr(config, name)) for name in ("loss", "optimizer", "schedule", "training")}
    return {
        "level": labels.level.header(),
        "provenance": {
            "data": {
                "files": [{"name": f.path.name, "labels": len(f)} for f in labels.files],
                "n_molecules": len(chosen),
                "validation": config.data.val if isinstance(config.data.val, float) else "files",
            },
            "training": sections,
            "init": Path(config.model.init).name if config.model.init else None,
            "versions": package_versions(),
        },
    }


def _test(folder: Path, labels: LabelSet, device: torch.device) -> dict[str, Any]:
    """Errors of the best model (without validation: the last) on the test data; also written into its header."""
    from . import load
    from .evaluate import evaluate

    path = folder / "best.safetensors"
    path = path if path.exists() else folder / "model.safetensors"
    report = evaluate(load(path, device=str(device)), labels)
    header, tensors = read_checkpoint(path)
    header["metrics"] = {**header.get("metrics", {}), "test": report}
    write_checkpoint(path, tensors, header, force=True)
    return report
