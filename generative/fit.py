"""From a configuration to a trained generator: molecules, vocabulary, model or start weights, training."""

from __future__ import annotations

import glob
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.structure import Structure
from ..training.config import ConfigError, option, to_dict
from ..training.data import distributed_rank, distributed_world_size
from ..training.fit import device_of, fit
from ..training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from ..training.run_folder import check_same, package_versions, start_folder
from ..training.state import seed_generators, torch_settings
from .conditions import Conditions
from .data import MoleculeOptions, read_molecules
from .loader import MoleculeLoader, encode_all
from .model import EqgatDiff
from .pocket import PocketFacts
from .protein import read_pairs
from .reference import Reference
from .task import GeneratorTask, LossOptions, compile_network
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class GeneratorModel:
    """Which model."""

    architecture: str = option("eqgat-diff", "name of the architecture")
    config: dict[str, Any] = option(
        {},
        "hyper-parameters: {preset: default} (published, default, cpu), {network: {layers: 5}}, {diffusion: …}",
    )
    init: str | None = option(
        None, "go on or fine-tune from this checkpoint, a file or the folder RUN/weights; null: fresh weights"
    )


@dataclass(frozen=True)
class GeneratorData:
    """Which molecules, and how they are batched."""

    train: str | list[str] = option([], "SD files, SMILES files or stores with bonds; * and ? are patterns")
    val: float | str | list[str] = option(0.05, "validation: files, or the fraction of train drawn by training.seed")
    molecules: MoleculeOptions = option(MoleculeOptions(), "the form in which molecules are learned")
    condition: list[str] = option(
        [],
        "properties that generation shall aim at: SD properties, columns of a SMILES file, keys of a store",
    )
    pockets: str | list[str] | None = option(
        None, "PDB files of the pockets, one for each file of train in the same order; null: free molecules"
    )
    pocket_radius: float = option(6.0, "Å, residues so near to the molecule are its pocket")
    batch_size: int | None = option(64, "molecules per step, over all processes; null: no limit")
    max_edges: int | None = option(None, "most ordered pairs of atoms per step; null: no limit")

    def __post_init__(self) -> None:
        if isinstance(self.val, float) and not 0 <= self.val < 1:
            raise ConfigError(f"val as a fraction must lie in [0, 1), got {self.val}")
        if self.pockets is not None and not isinstance(self.val, float):
            raise ConfigError("with pockets, val is the fraction of the pairs that validates")
        if self.pocket_radius <= 0:
            raise ConfigError(f"pocket_radius must be positive Å, got {self.pocket_radius}")


@dataclass(frozen=True)
class GeneratorTraining:
    """The whole configuration of `tesseral train` for a generator of molecules."""

    run: str = option("runs/generator", "folder that the training writes")
    model: GeneratorModel = option(GeneratorModel(), "the model")
    data: GeneratorData = option(GeneratorData(), "the data")
    loss: LossOptions = option(LossOptions(), "weights of the loss terms")
    optimizer: OptimizerOptions = option(
        OptimizerOptions(lr=5e-4, weight_decay=1e-12, betas=[0.9, 0.999], amsgrad=True, clip=1.0),
        "the optimiser",
    )
    schedule: ScheduleOptions = option(ScheduleOptions(), "the learning rate")
    training: TrainingOptions = option(TrainingOptions(), "length, precision, hardware, saving")


def train(config: GeneratorTraining, *, resume: bool = False, force: bool = False) -> dict[str, Any]:
    """Train a generator as the configuration says; returns the last numbers and what was left out of the data.

    Raises:
        UserError: whatever is wrong with configuration or data, before any training starts.
        Interrupted: Ctrl-C or SIGTERM, with the state saved.
    """
    folder = Path(config.run)
    device_of(config.training)
    if resume:
        check_same(config, folder)
    with torch_settings(threads=config.training.threads, precision=config.training.precision):
        seed_generators(config.training.seed)
        training, validation, left_out = open_molecules(config)
        model = _model(config, [*training, *validation])
        print(f"{len(training)} molecules to learn, {len(validation)} to validate: {model.vocabulary.summary()}")
        if model.conditions is not None:
            print(model.conditions.summary())
        for reason, count in left_out.items():
            print(f"left out {count}: {reason}")
        if distributed_rank() == 0 and not resume:
            start_folder(config, folder, force=force)
        before = _steps_before(model)
        task = GeneratorTask(model, config.loss, header=_header(config, training, left_out, before))
        loaders = [
            _loader(config, part, model, shuffle=part is training, seed=config.training.seed + before)
            for part in (training, validation)
            if part
        ]
        if config.training.compile is True:
            device = device_of(config.training)
            compile_network(task.to(device), next(iter(loaders[0])).to(device))
        metrics = fit(
            task,
            loaders[0],
            loaders[1] if validation else None,
            folder,
            training=replace(config.training, seed=config.training.seed + before),
            optimizer=config.optimizer,
            schedule=config.schedule,
            resume=resume,
        )
    return {"folder": str(folder), "metrics": metrics, "left_out": left_out}


def open_molecules(config: GeneratorTraining) -> tuple[list[Structure], list[Structure], dict[str, int]]:
    """Training molecules, validation molecules, and how many were left out for which reason.

    Raises:
        ConfigError: no file named, or a fraction that leaves no training molecule.
        DataError: unreadable files.
    """
    data = config.data
    if not data.train:
        raise ConfigError("data.train is missing: name at least one file of molecules")
    if data.pockets is None:
        molecules, left_out = read_molecules(_files(data.train), data.molecules, properties=data.condition)
    else:
        molecules, left_out = read_pairs(
            _files(data.train),
            _files(data.pockets),
            data.molecules,
            data.pocket_radius,
            properties=data.condition,
        )
    if not isinstance(data.val, float):
        validation, more = (
            read_molecules(_files(data.val), data.molecules, properties=data.condition) if data.val else ([], {})
        )
        return molecules, validation, {k: left_out.get(k, 0) + more.get(k, 0) for k in {**left_out, **more}}
    n = max(1, round(data.val * len(molecules))) if data.val else 0
    if n >= len(molecules):
        raise ConfigError(f"data.val={data.val} of {len(molecules)} molecules leaves none to learn; set data.val=0")
    drawn = set(np.random.default_rng(config.training.seed).permutation(len(molecules))[:n].tolist())
    return (
        [m for k, m in enumerate(molecules) if k not in drawn],
        [m for k, m in enumerate(molecules) if k in drawn],
        left_out,
    )


def _files(names: str | list[str]) -> list[str]:
    """Files of the names, patterns replaced by what they match, sorted.

    Raises:
        ConfigError: a pattern that matches nothing.
    """
    found = []
    for name in [names] if isinstance(names, str) else names:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) and not Path(name).exists() else [name]
        if not matches:
            raise ConfigError(f"no file matches {name}")
        found += matches
    return found


def _model(config: GeneratorTraining, molecules: list[Structure]) -> EqgatDiff:
    """A fresh model, or the start weights with the frequencies and sizes of the new data; in its dtype."""
    from . import build, load

    data, names = config.data, config.data.condition
    dtype = torch.float64 if config.training.precision == "float64" else torch.float32
    pockets = None if data.pockets is None else PocketFacts.from_structures(molecules, data.pocket_radius)
    if config.model.init is None:
        torch.manual_seed(config.training.seed)
        return build(
            config.model.architecture,
            config.model.config,
            Vocabulary.from_structures(molecules, extra=tuple(data.molecules.extra)),
            conditions=Conditions.from_structures(molecules, names) if names else None,
            pockets=pockets,
        ).to(dtype)
    start = load(config.model.init)
    if config.model.config not in ({}, {"self_conditioning": True}):
        raise ConfigError(
            "with model.init, model.config can only be {self_conditioning: true}: the start weights bring the rest"
        )
    if start.conditions is not None and start.conditions.names != tuple(names):
        raise ConfigError(f"model.init was trained with data.condition={list(start.conditions.names)}")
    if start.pockets is not None:
        if pockets is None:
            raise ConfigError("model.init was trained on molecules in pockets: data.pockets is missing")
        pockets = replace(pockets, elements=start.pockets.elements)
    torch.manual_seed(config.training.seed)
    model = EqgatDiff(
        replace(start.config, **config.model.config),
        start.vocabulary.recounted(molecules),
        conditions=Conditions.from_structures(molecules, names, scale=start.conditions) if names else None,
        pockets=pockets,
    )
    model.load_state_dict(_fitted(start.state_dict(), model.state_dict()))
    if names and start.conditions is None:  # at first as without properties
        torch.nn.init.zeros_(model.network.context_mix.weight)
    model.card = start.card
    return model.to(dtype)


def _fitted(start: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """The start weights, with zeros for inputs that they did not have, and fresh weights for layers they lack."""
    fitted = dict(fresh)
    for name, value in start.items():
        wider = fresh[name].ndim == 2 and fresh[name].shape[1] - value.shape[1]
        fitted[name] = torch.nn.functional.pad(value, (0, wider)) if wider else value
    return fitted


def _steps_before(model: EqgatDiff) -> int:
    """Steps that went into the start weights; a further run draws another order of the data and other noise.

    The seed is shifted by it, so that runs of a few minutes one after the other do not see the same numbers again;
    which molecules validate depends on `training.seed` alone.
    """
    before = model.card.get("provenance", {}).get("steps_before", 0)
    return int(before + model.card.get("training_metrics", {}).get("step", 0))


def _loader(
    config: GeneratorTraining, molecules: list[Structure], model: EqgatDiff, *, shuffle: bool, seed: int
) -> MoleculeLoader:
    return MoleculeLoader(
        encode_all(molecules, model.vocabulary, conditions=model.conditions, pockets=model.pockets),
        batch_size=config.data.batch_size,
        max_edges=config.data.max_edges,
        shuffle=shuffle,
        seed=seed,
        rank=distributed_rank(),
        world_size=distributed_world_size(),
        dtype=model.dtype,
    )


def _header(
    config: GeneratorTraining, molecules: list[Structure], left_out: dict[str, int], before: int
) -> dict[str, Any]:
    """What a checkpoint keeps of its training; names of files without their folders."""
    files = _files(config.data.train)
    sections = {name: to_dict(getattr(config, name)) for name in ("loss", "optimizer", "schedule", "training")}
    return {
        **Reference.of(molecules).to_header(),
        "provenance": {
            "data": {
                "files": [Path(name).name for name in files],
                "n_molecules": len(molecules),
                "left_out": left_out,
                "molecules": to_dict(config.data.molecules),
                "condition": config.data.condition,
            },
            "training": sections,
            "init": Path(config.model.init).name if config.model.init else None,
            "steps_before": before,
            "versions": package_versions(),
        },
    }
