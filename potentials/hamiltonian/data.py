"""Label files as training data: samples with blocks to learn, read when asked for, batched by size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.errors import UserError
from ...datasets.loader import Budget, plan_batches, share_of_rank
from ...training.config import ConfigError, option
from .foreign import chain, reader_of
from .layout import Blocks, OrbitalLayout
from .level import Level
from .molecules import Molecules, collate
from .solve import n_occupied, solve
from .store import Label, LabelFile, is_label_file
from .targets import root, to_target

CACHE_BYTES = 3 << 30


@dataclass(frozen=True)
class HamiltonianData:
    """Where the labels are and how they are batched."""

    train: str | list[str] = option([], "label files of `tesseral data hamiltonian`, all at one level of theory")
    val: float | str | list[str] = option(0.1, "validation: files, or the fraction of train drawn by training.seed")
    test: str | list[str] = option([], "label files evaluated with the best weights at the end; may be empty")
    batch_size: int | None = option(8, "molecules per step, over all processes; null: no limit")
    max_pairs: int | None = option(None, "most pairs of atoms per step; null: no limit")
    limit: int | None = option(None, "learn only from so many molecules, drawn by training.seed; null: all")

    def __post_init__(self) -> None:
        if isinstance(self.val, float) and not 0 <= self.val < 1:
            raise ConfigError(f"val as a fraction must lie in [0, 1), got {self.val}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1 or null, got {self.limit}")


@dataclass(frozen=True)
class LabelSet:
    """Labels of one or several files at one level of theory."""

    labels: Sequence[Label]
    files: tuple[LabelFile, ...]
    level: Level
    layout: OrbitalLayout

    @classmethod
    def open(cls, paths: str | Path | Sequence[str | Path]) -> LabelSet:
        """Open label files together.

        Raises:
            UserError: a file that is no label file of ours, or files of different levels of theory.
        """
        named = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
        for path in named:
            if path.exists() and not is_label_file(path) and reader_of(path) is not None:
                raise UserError(
                    f"{path} has no guess for its matrices; add it with `tesseral data hamiltonian {path} -o H.h5`"
                )
        files = tuple(LabelFile(path) for path in named)
        shells: dict[int, tuple[int, ...]] = {}
        for file in files:
            file.level.require_same(files[0].level, str(file.path), str(files[0].path))
            shells |= dict(file.layout.shells)
        layout = OrbitalLayout.from_mapping(files[0].layout.basis, shells)
        return cls(chain(files), files, files[0].level, layout)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_atoms(self) -> np.ndarray:
        """``(n_labels,)`` atoms of each molecule."""
        return np.concatenate([file.n_atoms for file in self.files]).astype(np.int64)

    @property
    def has_orbitals(self) -> bool:
        """Whether Hamiltonian and overlap are stored, from which the orbitals follow."""
        return all({"hamiltonian", "overlap"} <= set(file.columns) for file in self.files)

    def delta(self, k: int) -> Label:
        """Label k with geometry and the matrices that its difference to the guess needs."""
        for file in self.files:
            if k < len(file):
                return file.read(k, ("delta",) if "delta" in file.columns else ("hamiltonian", "guess"))
            k -= len(file)
        raise IndexError(k)


@dataclass(frozen=True)
class Orbitals:
    """Reference orbitals of a batch in the basis of the target, for losses over orbitals instead of matrix elements.

    Attributes:
        coefficients: ``(G, A B, M)``, rows in the order of padded blocks of A atoms, columns occupied first.
        energies: ``(G, M)`` Eh.
        n_occupied: ``(G,)``.
        n_orbitals: ``(G,)``; further columns are padding.
    """

    coefficients: Tensor
    energies: Tensor
    n_occupied: Tensor
    n_orbitals: Tensor

    def to(self, device: Any = None) -> Orbitals:
        """The same on another device."""
        moved = (t.to(device) for t in (self.coefficients, self.energies, self.n_occupied, self.n_orbitals))
        return Orbitals(*moved)


@dataclass(frozen=True)
class Batch:
    """Molecules with targets, or without any where a process has no share of a step."""

    molecules: Molecules
    orbitals: Orbitals | None = None

    def to(self, device: Any = None) -> Batch:
        """The same on another device."""
        return Batch(self.molecules.to(device), None if self.orbitals is None else self.orbitals.to(device))


def collate_orbitals(parts: Sequence[Orbitals]) -> Orbitals:
    """Orbitals of several molecules, padded to the largest."""
    rows = max(p.coefficients.shape[1] for p in parts)
    columns = max(p.coefficients.shape[2] for p in parts)
    coefficients = parts[0].coefficients.new_zeros(len(parts), rows, columns)
    energies = parts[0].energies.new_zeros(len(parts), columns)
    for k, part in enumerate(parts):
        _, n, m = part.coefficients.shape
        coefficients[k, :n, :m] = part.coefficients[0]
        energies[k, :m] = part.energies[0]
    counts = (torch.cat([getattr(p, name) for p in parts]) for name in ("n_occupied", "n_orbitals"))
    return Orbitals(coefficients, energies, *counts)


class Samples(Sequence[Batch]):
    """One-molecule batches of labels, kept in memory while they fit.

    Args:
        labels: opened label files.
        indices: which of them.
        layout: of the model.
        target: what is learned, see `targets`.
        orbitals: also solve for the reference orbitals.
        dtype: of positions and blocks.
    """

    def __init__(
        self,
        labels: LabelSet,
        indices: np.ndarray,
        layout: OrbitalLayout,
        *,
        target: str = "delta",
        orbitals: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.labels, self.indices, self.layout = labels, np.asarray(indices), layout
        self.target, self.orbitals, self.dtype = target, orbitals, dtype
        n = labels.n_atoms[self.indices]
        self.sizes = np.stack([n, n * (n - 1) // 2], 1)
        width = 8 if dtype == torch.float64 else 4
        self.cached = int(self.sizes.sum()) * layout.size**2 * width * (3 if orbitals else 1) < CACHE_BYTES
        self._cache: dict[int, Batch] = {}
        if not len(self.indices):
            raise UserError("the data set has no molecules")
        if orbitals and not labels.has_orbitals:
            raise UserError(
                "compact label files lack the overlap that losses over orbitals need: complete them with "
                "`tesseral data hamiltonian FILE -o FULL.h5`"
            )
        if target != "delta" and not labels.has_orbitals:
            raise UserError(
                f"compact label files hold differences to the guess only, too little for target {target!r}: complete "
                "them with `tesseral data hamiltonian FILE -o FULL.h5`"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: Any) -> Any:
        found = self._cache.get(number)
        if found is None:
            found = self._read(int(self.indices[number]))
            if self.cached:
                self._cache[number] = found
        return found

    def _read(self, k: int) -> Batch:
        full = self.orbitals or self.target != "delta"
        label = self.labels.labels[k] if full else self.labels.delta(k)
        numbers = torch.from_numpy(label.numbers)
        matrix = torch.from_numpy(to_target(label, self.target))
        targets = self.layout.to_blocks(matrix, numbers).to(dtype=self.dtype)
        molecules = Molecules.of(numbers, label.positions, dtype=self.dtype, targets=targets)
        return Batch(molecules, self._orbitals(label, numbers) if self.orbitals else None)

    def _orbitals(self, label: Label, numbers: Tensor) -> Orbitals:
        assert label.hamiltonian is not None and label.overlap is not None
        solution = solve(label.hamiltonian, label.overlap)
        n = len(solution.energies)
        coefficients = solution.coefficients
        if self.target == "orthogonal":
            coefficients = root(label.overlap, 0.5) @ coefficients
        rows = torch.zeros(1, len(numbers) * self.layout.size, n, dtype=self.dtype)
        rows[0, self.layout.orbital_index(numbers)] = torch.from_numpy(coefficients).to(self.dtype)
        return Orbitals(
            rows,
            torch.from_numpy(solution.energies)[None].to(self.dtype),
            torch.tensor([n_occupied(int(label.numbers.sum()))]),
            torch.tensor([n]),
        )

    def batch(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """Several molecules as one batch."""
        parts = [self[int(k)] for k in numbers]
        orbitals = [p.orbitals for p in parts if p.orbitals is not None]
        return Batch(collate([p.molecules for p in parts]), collate_orbitals(orbitals) if orbitals else None)

    def scales(self, most: int = 500) -> Tensor:
        """Root mean squares ``(2,)`` Eh of the elements of atoms' blocks and of pairs' blocks."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(int))
        sums = torch.zeros(2, 2, dtype=torch.float64)
        for k in chosen:
            molecules = self[int(k)].molecules
            blocks, masks = molecules.targets, self.layout.masks(molecules.numbers, molecules.pairs)
            assert blocks is not None
            for part, (values, mask) in enumerate(zip((blocks.diagonal, blocks.lower), masks, strict=True)):
                sums[part] += torch.tensor([float(values.double().square().sum()), float(mask.sum())])
        roots = (sums[:, 0] / sums[:, 1].clamp(min=1)).sqrt()
        return torch.where(roots > 0, roots, 1.0).float()


class HamiltonianLoader:
    """Batches of one epoch after the other; the protocol of `training.fit`: seek, len, iteration, state.

    Args:
        samples: molecules.
        batch_size, max_pairs: limits of one batch of all processes.
        shuffle: a new order in each epoch, from `seed`; else that of the data.
        rank, world_size: this process takes its share of each batch.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int | None = None,
        max_pairs: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.samples, self.budget = samples, Budget(batch_size, None, max_pairs)
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self._epoch, self._start, self._plan = 0, 0, self._planned(0)

    def __len__(self) -> int:
        return len(self._plan)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration start at `batch` of `epoch`.

        Raises:
            UserError: no such batch.
        """
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._planned(epoch)
        if not 0 <= batch < len(self):
            raise UserError(f"epoch {epoch} has {len(self)} batches, there is no position {batch}")
        self._start = batch

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        for batch in self._plan[start:]:
            share = share_of_rank(batch, self.samples.sizes, self.rank, self.world_size)
            if len(share):
                yield self.samples.batch(share)
            else:
                yield Batch(replace(self.samples[int(batch[0])].molecules, targets=None))

    def state_dict(self) -> dict[str, Any]:
        """What the order of batches depends on; the position itself is kept by the trainer."""
        return {
            "n_molecules": len(self.samples),
            "n_atoms": int(self.samples.sizes[:, 0].sum()),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "batch_size": self.budget.batch_size,
            "max_pairs": self.budget.max_edges,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a saved training saw the same batches.

        Raises:
            UserError: other data, limits or seed.
        """
        if state != self.state_dict():
            raise UserError(
                f"cannot resume in the middle of the data: the saved run had {state}, this one has "
                f"{self.state_dict()}; restore the same data, limits and seed"
            )

    def _planned(self, epoch: int) -> list[np.ndarray]:
        return plan_batches(self.samples.sizes, self.budget, shuffle=self.shuffle, seed=self.seed, epoch=epoch)


def split(n: int, options: HamiltonianData, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to learn from and to validate with, drawn by the seed; the former cut to `limit`, in random order.

    Validation depends on the seed alone, not on the limit, so that learning curves share it.

    Raises:
        ConfigError: nothing left to learn from.
    """
    order = np.random.default_rng(seed).permutation(n)
    n_val = max(1, round(options.val * n)) if isinstance(options.val, float) and options.val else 0
    train = order[n_val:][: options.limit]
    if not len(train):
        raise ConfigError(f"data.val={options.val} of {n} molecules leaves none to learn")
    return train, np.sort(order[:n_val])


def assemble(blocks: Blocks, molecules: Molecules, size: int) -> Tensor:
    """Padded symmetric matrices ``(G, A B, A B)`` of a batch, A the atoms of its largest molecule."""
    n_molecules, most = molecules.n_molecules, int(molecules.n_atoms.max())
    starts = torch.cumsum(molecules.n_atoms, 0) - molecules.n_atoms
    atom = torch.arange(len(molecules.batch), device=starts.device) - starts[molecules.batch]
    i, j = molecules.pairs - starts[molecules.pair_batch]
    full = blocks.diagonal.new_zeros(n_molecules, most, most, size, size)
    full = full.index_put((molecules.batch, atom, atom), blocks.diagonal)
    full = full.index_put((molecules.pair_batch, i, j), blocks.lower)
    full = full.index_put((molecules.pair_batch, j, i), blocks.lower.transpose(1, 2))
    return full.transpose(2, 3).reshape(n_molecules, most * size, most * size)
