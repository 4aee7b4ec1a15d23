"""From a configuration to a trained potential: data, statistics, model or start weights, training, test."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.domain import measure_domain
from ..datasets.elements import SYMBOLS
from ..datasets.graph import collate
from ..datasets.source import Source
from ..datasets.statistics import Statistics, compute_statistics
from ..training import data as training_data
from ..training.checkpoint import read_checkpoint, write_checkpoint
from ..training.config import ConfigError, option, to_dict
from ..training.data import DataOptions, DataSets
from ..training.fit import device_of, fit
from ..training.optimizers import freeze
from ..training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from ..training.run_folder import check_same, start_folder
from ..training.state import seed_generators, torch_settings
from .base import Potential, energy_and_gradient, predict
from .loss import LossOptions
from .task import CompileError, PotentialTask, use_compiled

DTYPES = {"float64": torch.float64}
TRIAL_FRAMES = 8  # in the batch that compilation is tried on
REFERENCE_FRAMES = 500  # frames from which reference energies are estimated anew in fine-tuning


@dataclass(frozen=True)
class ModelOptions:
    """Which model."""

    architecture: str = option("tesseral", "name of the architecture (ignored with init)")
    config: dict[str, Any] = option({}, "hyper-parameters of the architecture: {cutoff: 5.0, channels: [64, 32]}")
    init: str | None = option(None, "fine-tune from this checkpoint file or shipped model; null: fresh weights")
    freeze: list[str] = option([], "patterns of parameter names that stay as they are: ['embedding*', 'layers.0.*']")


@dataclass(frozen=True)
class PotentialTraining:
    """The whole configuration of `tesseral train` for a potential."""

    run: str = option("runs/potential", "folder that the training writes")
    model: ModelOptions = option(ModelOptions(), "the model")
    data: DataOptions = option(DataOptions(), "the data")
    loss: LossOptions = option(LossOptions(), "the loss: sum of weight x mean of function(error) over three terms")
    optimizer: OptimizerOptions = option(OptimizerOptions(), "the optimiser")
    schedule: ScheduleOptions = option(ScheduleOptions(), "the learning rate")
    training: TrainingOptions = option(TrainingOptions(), "length, precision, hardware, saving")


FACTS = "statistics.json"


def train(config: PotentialTraining, *, resume: bool = False, force: bool = False) -> dict[str, Any]:
    """Train a potential as the configuration says; returns the last numbers and, with test data, the test errors.

    Raises:
        UserError: whatever is wrong with configuration or data, before any training starts.
        Interrupted: Ctrl-C or SIGTERM, with the state saved.
    """
    folder = Path(config.run)
    main_process = training_data.distributed_rank() == 0
    device_of(config.training)
    if resume:
        check_same(config, folder, free=("data.test", "data.workers"))
    elif main_process:
        start_folder(config, folder, force=force, also=(FACTS,))
    with torch_settings(threads=config.training.threads, precision=config.training.precision):
        seed_generators(config.training.seed)
        data = training_data.open_data(config.data, seed=config.training.seed)
        if resume:
            model, facts = _restored_model(config, folder / FACTS)
        else:
            model, facts = _new_model(config, data.train)
        if main_process and not resume:
            (folder / FACTS).write_text(json.dumps(facts.to_dict(), indent=1), encoding="utf-8")
        freeze(model, config.model.freeze)
        task = PotentialTask(
            model,
            config.loss,
            weights=config.data.weights,
            header=_header(config, data, facts),
        )
        loaders = _loaders(config, data, model)
        _compile(config.training, task, loaders[0])
        metrics = fit(
            task,
            *loaders,
            folder,
            training=config.training,
            optimizer=config.optimizer,
            schedule=config.schedule,
            resume=resume,
        )
        result = {"folder": str(folder), "metrics": metrics}
        if data.test is not None and main_process:
            result["test"] = _test(folder, data.test, model.device)
        return result


def _test(folder: Path, source: Source, device: torch.device) -> dict[str, Any]:
    """Errors of the best model (without validation: the last) on the test data; also written into its header."""
    from . import load
    from .evaluate import evaluate

    path = folder / "best.safetensors"
    path = path if path.exists() else folder / "model.safetensors"
    report = evaluate(load(path, device=str(device)), source).report()
    header, tensors = read_checkpoint(path)
    header["metrics"] = {**header.get("metrics", {}), "test": report}
    write_checkpoint(path, tensors, header, force=True)
    return report


@dataclass
class DataFacts:
    """What one look at the training data gave: kept in the run folder, so that a resumed run need not look again."""

    statistics: Statistics
    domain: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"statistics": asdict(self.statistics), "domain": self.domain}

    @classmethod
    def read(cls, path: Path) -> DataFacts:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot resume: {path} is not readable ({error})") from error
        statistics = record["statistics"]
        statistics["reference_energies"] = {int(z): e for z, e in statistics["reference_energies"].items()}
        return cls(Statistics(**statistics), record["domain"])


def _new_model(config: PotentialTraining, train: Source) -> tuple[Potential, DataFacts]:
    """The model in its dtype with its reference energies, fresh or from start weights."""
    from . import build

    start = _start_model(config)
    if start is None:
        probe = Statistics([1], {1: 0.0}, 1.0, 1.0, 20.0, 1, 1)
        cutoff = build(config.model.architecture, config.model.config, probe).cutoff
    else:
        cutoff = start.cutoff
    isolated = training_data.isolated_energies(config.data)
    statistics = compute_statistics(train, cutoff, isolated=isolated, required=config.loss.labels)
    if start is not None:
        _check_elements(start, statistics)
        statistics.reference_energies = estimate_references(start, train, isolated)
    elif config.data.reference_shift:
        statistics.reference_energies = training_data.shifted_references(train, statistics.reference_energies)
    facts = DataFacts(statistics, measure_domain(train).to_dict())
    return _finished_model(config, start, statistics), facts


def _restored_model(config: PotentialTraining, path: Path) -> tuple[Potential, DataFacts]:
    """The model of an earlier start; its weights come with the state."""
    facts = DataFacts.read(path)
    return _finished_model(config, _start_model(config), facts.statistics), facts


def _start_model(config: PotentialTraining) -> Potential | None:
    from . import load

    return None if config.model.init is None else load(config.model.init)


def _finished_model(config: PotentialTraining, start: Potential | None, statistics: Statistics) -> Potential:
    from . import build

    if start is None:
        torch.manual_seed(config.training.seed)
        start = build(config.model.architecture, config.model.config, statistics)
    start.reference_energies.update(statistics.reference_energies)
    return start.to(DTYPES.get(config.training.precision, torch.float32))


def estimate_references(model: Potential, source: Source, isolated: dict[int, float]) -> dict[int, float]:
    """Reference energies (eV) that fit the model's interaction energies to new data, e.g. another level of theory.

    Least squares of (E − E_model) / n on the composition, smallest change from the model's own references;
    elements in `isolated` are fixed. Elements that the data lack keep their value.
    """
    from ..datasets.graph import graph_from_structure

    elements, rows, values = list(model.elements), [], []
    known = {z: isolated[z] for z in elements if z in isolated}
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), REFERENCE_FRAMES)).astype(int)):
        structure = source[int(index)]
        if "energy" not in structure.labels or not structure.n_atoms:
            continue
        graph = graph_from_structure(structure, model.cutoff, dtype=model.dtype)
        predicted = float(predict(model, graph, forces=False, stress=False).energy)
        fractions = np.array([(structure.numbers == z).sum() for z in elements]) / structure.n_atoms
        rows.append(fractions)
        values.append((float(structure.labels["energy"]) - predicted) / structure.n_atoms)
    fixed = np.array([known.get(z, np.nan) - model.reference_energies[z] for z in elements])
    free = np.isnan(fixed)
    shifts = np.where(free, 0.0, fixed)
    if rows and free.any():
        composition = np.array(rows)
        target = np.array(values) - composition @ shifts
        shifts[free] = np.linalg.lstsq(composition[:, free], target, rcond=1e-6)[0]
    return {z: model.reference_energies[z] + float(s) for z, s in zip(elements, shifts, strict=True)}


def _check_elements(model: Potential, statistics: Statistics) -> None:
    new = [SYMBOLS[z] for z in statistics.elements if z not in model.elements]
    if new:
        known = " ".join(SYMBOLS[z] for z in model.elements)
        raise ConfigError(
            f"model.init knows {known}, the training data also have {' '.join(new)}: a model cannot learn new "
            "elements in fine-tuning; leave those frames out or train afresh"
        )


def _loaders(config: PotentialTraining, data: DataSets, model: Potential) -> tuple[Any, Any]:
    seed, labels = config.training.seed, config.loss.labels
    make = training_data.make_loader
    loader = make(config.data, data.train, model.cutoff, labels=labels, dtype=model.dtype, seed=seed, train=True)
    if data.validation is None:
        return loader, None
    validation = make(
        config.data, data.validation, model.cutoff, labels=labels, dtype=model.dtype, seed=seed, train=False
    )
    return loader, validation


def _header(config: PotentialTraining, data: DataSets, facts: DataFacts) -> dict[str, Any]:
    """What a checkpoint keeps of its training; no folder names, so that files can be passed on."""
    sections = {name: to_dict(getattr(config, name)) for name in ("loss", "optimizer", "schedule", "training")}
    return {
        "domain": facts.domain,
        "provenance": {
            "data": training_data.provenance(config.data, data),
            "statistics": asdict(facts.statistics),
            "training": sections,
            "init": Path(config.model.init).name if config.model.init else None,
            "versions": _versions(),
        },
    }


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("tesseral", "torch", "numpy", "lightning"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _compile(training: TrainingOptions, task: PotentialTask, loader: Any) -> None:
    """Compile where it is asked for, or with "auto" on a GPU where it works and is faster."""
    device = device_of(training)
    if training.compile is False or (training.compile == "auto" and device.type != "cuda"):
        return
    task.to(device)
    graphs = [loader.frames[k] for k in range(min(TRIAL_FRAMES, len(loader.frames)))]
    try:
        if training.precision == "bf16":
            raise CompileError("autocast (training.precision=bf16) is not covered by a test")
        slow, fast = use_compiled(task, collate(graphs).to(device))
    except CompileError as error:
        if training.compile is True:
            raise ConfigError(f"training.compile=true: {error}; set training.compile=false") from error
        print(f"training without compilation: {error}")
        return
    if training.compile == "auto" and fast > slow:
        task.evaluate = energy_and_gradient
    kept = "eager" if task.evaluate is energy_and_gradient else "compiled"
    print(f"training step {1e3 * slow:.0f} ms eager, {1e3 * fast:.0f} ms compiled: {kept}")
