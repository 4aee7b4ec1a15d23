"""The data section of a training: files to sources, split, labels checked, reference energies, loaders."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.elements import NUMBERS
from ..datasets.graph import Graph
from ..datasets.keys import KeyMap
from ..datasets.read import Location, open_source
from ..datasets.source import Source, Subset
from ..datasets.units import Units
from . import distributed
from .config import ConfigError, from_dict, option

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataOptions:
    """Where the data are and how they are batched. A path may name a group of an HDF5 file: file.h5::group."""

    train: str | list[str] = option([], "training files, one or several (all are concatenated)")
    val: float | str | list[str] = option(0.1, "validation: files, or the fraction of train drawn by training.seed")
    test: str | list[str] = option([], "test files: evaluated with the best weights at the end; may be empty")
    keys: dict[str, str] = option({}, "names of labels in the files where the guess would not do: {energy: E_dft}")
    units: dict[str, str | int] = option({}, "units of the files: {energy: kcal/mol, length: Å}; default eV and Å")
    reference_energies: str | dict[str, float] = option(
        "fit",
        "energies of isolated atoms: fit (one-atom frames of train, else least squares), a file, {H: -13.6} eV",
    )
    reference_shift: bool = option(
        False,
        "add the mean binding energy of the data to the reference energies: the network starts near the data, but "
        "isolated atoms are off by it",
    )
    batch_size: int | None = option(None, "structures per step, over all processes; null: as max_atoms says, or 8")
    max_atoms: int | None = option(None, "most atoms per step; null: no limit")
    max_edges: int | None = option(None, "most neighbour pairs per step; null: no limit")
    workers: int | None = option(None, "processes that prepare batches; null: chosen by size of the data")
    weights: dict[str, float] = option({}, "weight of structures in the loss by their config_type: {surface: 2}")

    def __post_init__(self) -> None:
        if isinstance(self.val, float) and not 0 <= self.val < 1:
            raise ConfigError(f"val as a fraction must lie in [0, 1), got {self.val}")
        if any(weight < 0 for weight in self.weights.values()):
            raise ConfigError(f"weights must be >= 0, got {self.weights}")

    @property
    def key_map(self) -> KeyMap:
        return from_dict(KeyMap, self.keys, where="data", prefix="keys.")

    @property
    def unit_map(self) -> Units:
        return from_dict(Units, self.units, where="data", prefix="units.")


@dataclass
class DataSets:
    """Opened sources; `validation` and `test` are None where there are none."""

    train: Source
    validation: Source | None
    test: Source | None


def open_data(options: DataOptions, *, seed: int) -> DataSets:
    """Open the files and split.

    Raises:
        ConfigError: no training file named, or a fraction that leaves a side empty.
        DataError: unreadable files.
    """
    if not options.train:
        raise ConfigError("data.train is missing: name at least one training file")
    train, validation = _open(options, options.train), None
    if not isinstance(options.val, float):
        validation = _open(options, options.val) if options.val else None
    elif options.val > 0:
        train, validation = split(train, options.val, seed)
    test = _open(options, options.test) if options.test else None
    return DataSets(train, validation, test)


def _open(options: DataOptions, paths: str | list[str]) -> Source:
    return open_source(paths, keys=options.key_map, units=options.unit_map)


def split(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """Draw `fraction` of the frames for validation; both parts keep the order of the file.

    One-atom frames stay in the training part: they carry the reference energies.

    Raises:
        ConfigError: too few frames for both parts.
    """
    candidates = np.flatnonzero(source.n_atoms > 1)
    n = max(1, round(fraction * len(candidates)))
    if n >= len(candidates):
        raise ConfigError(
            f"data.val={fraction} of {len(candidates)} frames leaves no training frame; name validation files"
        )
    drawn = np.random.default_rng(seed).permutation(candidates)[:n]
    rest = np.setdiff1d(np.arange(len(source)), drawn)
    return Subset(source, rest), Subset(source, np.sort(drawn))


def isolated_energies(options: DataOptions) -> dict[int, float]:
    """Energies (eV) of isolated atoms by atomic number that the options name; empty for "fit".

    Raises:
        ConfigError: unknown symbol, or a file without one-atom frames that have an energy.
    """
    chosen = options.reference_energies
    if isinstance(chosen, dict):
        unknown = [symbol for symbol in chosen if symbol not in NUMBERS]
        if unknown:
            raise ConfigError(f"data.reference_energies: {', '.join(unknown)} is no element symbol")
        return {NUMBERS[symbol]: energy for symbol, energy in chosen.items()}
    if chosen == "fit":
        return {}
    source, found = _open(options, chosen), dict[int, float]()
    for index in np.flatnonzero(source.n_atoms == 1):
        structure = source[int(index)]
        if "energy" in structure.labels:
            found[int(structure.numbers[0])] = float(structure.labels["energy"])
    if not found:
        raise ConfigError(f"data.reference_energies: {chosen} has no one-atom frame with an energy")
    return found


def shifted_references(source: Source, references: dict[int, float]) -> dict[int, float]:
    """Reference energies plus the binding energy per atom of the data, by element.

    First the same shift for all elements (the mean of (E − references) / n over frames with more than one atom),
    then the smallest least squares change by element that the compositions call for.
    """
    numbers, rows, values = sorted(references), [], []
    for structure in source:
        if structure.n_atoms > 1 and "energy" in structure.labels:
            counts = np.array([(structure.numbers == z).sum() for z in numbers])
            rest = float(structure.labels["energy"]) - float(counts @ [references[z] for z in numbers])
            rows.append(counts / structure.n_atoms)
            values.append(rest / structure.n_atoms)
    if not rows:
        return references
    mean = float(np.mean(values))
    change = np.linalg.lstsq(np.array(rows), np.array(values) - mean, rcond=1e-6)[0]
    return {z: references[z] + mean + float(c) for z, c in zip(numbers, change, strict=True)}


def make_loader(
    options: DataOptions,
    source: Source,
    cutoff: float,
    *,
    labels: Sequence[str],
    dtype: Any,
    seed: int,
    train: bool,
) -> Any:
    """The `GraphLoader` of this process; validation is in file order and unshuffled."""
    from ..datasets.loader import GraphLoader

    limits = (options.batch_size, options.max_atoms, options.max_edges)
    batch_size = 8 if all(limit is None for limit in limits) else options.batch_size
    return GraphLoader(
        source,
        cutoff,
        labels=tuple(labels),
        dtype=dtype,
        shuffle=train,
        seed=seed,
        rank=distributed_rank(),
        world_size=distributed_world_size(),
        workers=options.workers,
        batch_size=batch_size,
        max_atoms=options.max_atoms,
        max_edges=options.max_edges,
    )


def distributed_rank() -> int:
    """This process's rank, also before torch.distributed has started."""
    return distributed.rank() or int(os.environ.get("RANK", "0"))


def distributed_world_size() -> int:
    """Number of processes, also before torch.distributed has started."""
    return max(distributed.world_size(), int(os.environ.get("WORLD_SIZE", "1")))


def group_weights(graph: Graph, weights: dict[str, float]) -> Any:
    """Weight of each structure ``(G,)`` by its config_type, or None when none is set."""
    import torch

    if not weights or graph.groups is None:
        return None
    values = [weights.get(group, 1.0) for group in graph.groups]
    return torch.tensor(values, dtype=torch.float64, device=graph.positions.device)


def provenance(options: DataOptions, data: DataSets) -> dict[str, Any]:
    """What a checkpoint says of its data: file names (no folders), frames, checksums of files up to 1 GB."""
    files: dict[str, list[dict[str, Any]]] = {}
    for part in ("train", "val", "test"):
        paths = getattr(options, part)
        for text in [paths] if isinstance(paths, str) else paths if isinstance(paths, list) else []:
            files.setdefault(part, []).append(_file_record(Location.parse(text).path))
    frames = {"train": data.train, "val": data.validation, "test": data.test}
    return {
        "files": files,
        "frames": {name: len(source) for name, source in frames.items() if source is not None},
        **({"val_fraction": options.val} if isinstance(options.val, float) and options.val else {}),
    }


def _file_record(path: Path) -> dict[str, Any]:
    import hashlib

    record: dict[str, Any] = {"name": path.name}
    if path.is_file() and path.stat().st_size <= 1 << 30:
        with path.open("rb") as file:
            record["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return record
