"""Batches of graphs: planned from a seed, under a budget, resumable, shared between processes.

The plan of an epoch is a list of global batches that depends on the seed, the epoch and the sizes of the
frames only, so every rank computes the same plan, and rank r takes its share of each global batch: the union
over ranks of batch k is batch k of a single process. Budgets therefore count the whole global batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from .errors import DataError, UserError
from .graph import Graph, collate, graph_from_structure
from .structure import Structure

log = logging.getLogger(__name__)

BUCKET = 32  # batches' worth of shuffled frames that are packed together, largest first
PROBES = 16  # frames that are built to estimate the memory of all graphs


@dataclass(frozen=True)
class Budget:
    """Limits of one global batch: frames, atoms, edges; None = no limit, but one of them must be given."""

    batch_size: int | None = None
    max_atoms: int | None = None
    max_edges: int | None = None

    def __post_init__(self) -> None:
        limits = (self.batch_size, self.max_atoms, self.max_edges)
        if all(limit is None for limit in limits):
            raise UserError("a loader needs a limit: batch_size, max_atoms or max_edges")
        if any(limit is not None and limit < 1 for limit in limits):
            raise UserError(f"batch limits must be positive, got {self}")

    @property
    def by_size(self) -> bool:
        return self.max_atoms is not None or self.max_edges is not None


class GraphFrames:
    """The graph of every frame of a source; kept in memory when all of them fit into `cache_bytes`.

    Whether they fit is judged from a few frames, once, when this object is made.
    """

    def __init__(
        self,
        source: Sequence[Structure],
        cutoff: float,
        labels: Sequence[str],
        dtype: torch.dtype,
        cache_bytes: int,
    ) -> None:
        self.source, self.cutoff, self.labels, self.dtype = source, cutoff, tuple(labels), dtype
        self._cache: dict[int, Graph] = {}
        self.cached = False
        probes = np.unique(np.linspace(0, len(source) - 1, min(PROBES, len(source))).astype(int))
        graphs = {int(i): self[int(i)] for i in probes}
        self.estimated_bytes = int(np.mean([g.nbytes for g in graphs.values()]) * len(source))
        self.cached = self.estimated_bytes <= cache_bytes
        if self.cached:
            self._cache = graphs

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Graph:
        graph = self._cache.get(index)
        if graph is None:
            try:
                graph = graph_from_structure(self.source[index], self.cutoff, dtype=self.dtype, labels=self.labels)
            except UserError as error:
                where = getattr(self.source, "where", "frame {}".format)(index)
                raise DataError(str(error), where) from error
            if self.cached:
                self._cache[index] = graph
        return graph

    def sizes(self, *, edges: bool) -> np.ndarray:
        """Atoms and edges of every frame, (n_frames, 2); edges are counted, in a full pass, only if asked."""
        found = np.zeros((len(self), 2), dtype=np.int64)
        if edges:
            for i in range(len(self)):
                graph = self[i]
                found[i] = graph.numbers.shape[0], graph.n_edges
            return found
        known = getattr(self.source, "n_atoms", None)
        found[:, 0] = known if known is not None else [s.n_atoms for s in self.source]
        return found


def plan_batches(sizes: np.ndarray, budget: Budget, *, shuffle: bool, seed: int, epoch: int) -> list[np.ndarray]:
    """Frame indices of every global batch of one epoch.

    Arguments: sizes (n_frames, 2) atoms and edges; shuffle: order drawn from (seed, epoch), else file order.
    Under a budget of atoms or edges, shuffled frames are packed in buckets so that batches fill up evenly,
    and the batches are shuffled again.
    Raises UserError when a single frame exceeds the budget.
    """
    limits = np.array([budget.max_atoms or np.inf, budget.max_edges or np.inf])
    _check_single_frames(sizes, limits)
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes)) if shuffle else np.arange(len(sizes))
    if not (shuffle and budget.by_size):
        return _pack(order, sizes, limits, budget.batch_size or len(sizes))
    batches = _pack_buckets(order, sizes, limits, budget.batch_size or len(sizes))
    return [batches[k] for k in rng.permutation(len(batches))]


def _check_single_frames(sizes: np.ndarray, limits: np.ndarray) -> None:
    too_large = np.flatnonzero((sizes > limits).any(axis=1))
    if len(too_large):
        worst = too_large[np.argmax(sizes[too_large, 0])]
        axis = int(np.flatnonzero(sizes[worst] > limits)[0])
        what, option = (("atoms", "max_atoms"), ("edges", "max_edges"))[axis]
        raise UserError(
            f"{len(too_large)} frames exceed {option}={limits[axis]:.0f} on their own, the largest is frame "
            f"{worst} with {sizes[worst, axis]} {what}: raise {option} or leave those frames out"
        )


def _pack_buckets(order: np.ndarray, sizes: np.ndarray, limits: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Stretches of about BUCKET batches; in each, the largest first, to the first batch with room."""
    share = (sizes / limits).max(axis=1)
    length = max(1, int(BUCKET / max(share.mean(), 1.0 / batch_size)))
    max_atoms, max_edges = limits.tolist()
    batches: list[np.ndarray] = []
    for begin in range(0, len(order), length):
        stretch = order[begin : begin + length]
        stretch = stretch[np.argsort(-share[stretch], kind="stable")]
        members: list[list[int]] = []
        room: list[tuple[float, float]] = []
        for frame, (atoms, edges) in zip(stretch.tolist(), sizes[stretch].tolist(), strict=True):
            for k, (a, e) in enumerate(room):
                if atoms <= a and edges <= e and len(members[k]) < batch_size:
                    break
            else:
                k, (a, e) = len(room), (max_atoms, max_edges)
                members.append([])
                room.append((a, e))
            members[k].append(frame)
            room[k] = (a - atoms, e - edges)
        batches += [np.array(frames) for frames in members]
    return batches


def _pack(order: np.ndarray, sizes: np.ndarray, limits: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Fill batches in the given order; a frame that does not fit opens the next one."""
    if np.isinf(limits).all():
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    cuts, count, atoms, edges = [], 0, 0, 0
    max_atoms, max_edges = limits.tolist()
    for place, (a, e) in enumerate(sizes[order].tolist()):
        if count == batch_size or atoms + a > max_atoms or edges + e > max_edges:
            cuts.append(place)
            count = atoms = edges = 0
        count, atoms, edges = count + 1, atoms + a, edges + e
    return [part for part in np.split(order, cuts) if len(part)]


def share_of_rank(batch: np.ndarray, sizes: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The frames of one global batch that rank `rank` computes.

    They are dealt out by size, the largest first, always to the rank with the least work. Frames keep their
    order within the share. The share is empty when the batch has fewer frames than ranks.
    """
    if world_size == 1:
        return batch
    cost = sizes[batch].sum(axis=1)
    load = [0] * world_size
    owner = np.zeros(len(batch), dtype=np.int64)
    for place in np.argsort(-cost, kind="stable"):
        least = min(range(world_size), key=lambda r: (load[r], r))
        owner[place] = least
        load[least] += int(cost[place]) + 1
    return batch[owner == rank]


class GraphLoader:
    """Iterates over batches of graphs of one epoch after the other.

    Arguments:
        source: frames (a list, a Store, an indexed file); cutoff: Å; labels: what every graph carries, masked
        where a
            frame lacks it; dtype of the geometry.
        batch_size, max_atoms, max_edges: limits of one global batch (all ranks together), at least one.
        shuffle: new order in every epoch, from `seed` and the epoch; else file order.
        rank, world_size: this process takes its share of every global batch. Where a batch has fewer frames
        than
            ranks, a rank without frames gets a copy of one with all masks False: it counts for nothing.
        workers: processes that build graphs; default: none when the graphs are cached, else up to 4.
        cache_bytes: graphs are kept in memory when all of them fit.
        pin_memory: batches in page-locked memory, for a GPU.

    `len` is the number of batches of the current epoch. Each `iter` starts at the first batch of the current
    epoch, or where `seek` or `load_state_dict` put it; the epoch advances with its last batch.
    """

    def __init__(
        self,
        source: Sequence[Structure],
        cutoff: float,
        *,
        labels: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        batch_size: int | None = None,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
        cache_bytes: int = 2**30,
        pin_memory: bool = False,
    ) -> None:
        if len(source) == 0:
            raise UserError("the data set has no frames")
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} processes")
        self.budget = Budget(batch_size, max_atoms, max_edges)
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self.frames = GraphFrames(source, cutoff, labels, dtype, cache_bytes)
        self.sizes = self.frames.sizes(edges=max_edges is not None)
        default = 0 if self.frames.cached else min(4, (os.cpu_count() or 2) - 1)
        self.workers = default if workers is None else workers
        self.pin_memory = pin_memory
        self._epoch, self._done, self._start = 0, 0, 0
        self._plan: tuple[int, list[np.ndarray]] | None = None
        self._pool: DataLoader | None = None
        log.info(self.summary())

    def summary(self) -> str:
        """One line on size, batches and where graphs come from."""
        size = f"{self.frames.estimated_bytes / 1e6:.0f} MB"
        kept = "graphs kept in memory" if self.frames.cached else "graphs rebuilt, too large to keep"
        helpers = f", {self.workers} worker processes" if self.workers else ""
        return f"{len(self.frames)} frames, {len(self)} batches per epoch, {kept} ({size}){helpers}"

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def batches(self) -> list[np.ndarray]:
        """Frame indices of every global batch of the current epoch."""
        if self._plan is None or self._plan[0] != self._epoch:
            plan = plan_batches(self.sizes, self.budget, shuffle=self.shuffle, seed=self.seed, epoch=self._epoch)
            self._plan = (self._epoch, plan)
        return self._plan[1]

    def __len__(self) -> int:
        return len(self.batches)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration start at `batch` of `epoch`."""
        self._epoch, self._done, self._start = epoch, batch, batch
        if not 0 <= batch < len(self):
            raise UserError(f"epoch {epoch} has {len(self)} batches, there is no position {batch}")

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration start at the beginning of `epoch`."""
        self.seek(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Position behind the last batch handed out, with what the plan depends on (plain JSON types)."""
        return {"epoch": self._epoch, "batch": self._done, "plan": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; UserError when data, budget or seed are not the same."""
        if state["plan"] != self._identity():
            raise UserError(
                f"cannot resume in the middle of the data: the saved run had {state['plan']}, this one has "
                f"{self._identity()}; restore the same data, limits and seed"
            )
        self.seek(state["epoch"], state["batch"])

    def _identity(self) -> dict[str, Any]:
        limits = {"batch_size": self.budget.batch_size, "max_atoms": self.budget.max_atoms}
        order = {"max_edges": self.budget.max_edges, "shuffle": self.shuffle, "seed": self.seed}
        return {"n_frames": len(self.frames), "n_atoms": int(self.sizes[:, 0].sum()), **limits, **order}

    def __iter__(self) -> Iterator[Graph]:
        start, self._start = self._start, 0
        epoch, n_batches = self._epoch, len(self)
        for done, graph in enumerate(self._graphs(self.batches[start:]), start + 1):
            # The position moves before the batch is handed out, with the last one to the next epoch: trainers
            # count batches and never ask for the one after the last.
            self._epoch, self._done = (epoch + 1, 0) if done == n_batches else (epoch, done)
            yield graph

    def _graphs(self, batches: list[np.ndarray]) -> Iterator[Graph]:
        shares = [share_of_rank(batch, self.sizes, self.rank, self.world_size) for batch in batches]
        jobs = [
            (share, True) if len(share) else (batch[:1], False) for share, batch in zip(shares, batches, strict=True)
        ]
        if self.workers == 0:
            for job in jobs:
                graph = _assemble(self.frames, job)
                yield graph.pin_memory() if self.pin_memory else graph
            return
        if self._pool is None:
            self._pool = DataLoader(
                _Jobs(self.frames),  # type: ignore[arg-type]
                batch_sampler=_JobQueue(),  # type: ignore[arg-type]
                collate_fn=_first,
                num_workers=self.workers,
                persistent_workers=True,
                pin_memory=self.pin_memory,
                generator=torch.Generator(),  # the pool must not draw from torch's global generator
            )
        self._pool.batch_sampler.jobs = jobs  # type: ignore[union-attr]
        yield from self._pool


def _assemble(frames: GraphFrames, job: tuple[np.ndarray, bool]) -> Graph:
    """Batch the frames of a job; without masks when the rank has no frame of its own."""
    members, counts = job
    graph = collate([frames[int(i)] for i in members])
    if counts:
        return graph
    return replace(graph, masks={key: torch.zeros_like(mask) for key, mask in graph.masks.items()})


class _Jobs:
    """The view of `GraphFrames` that torch's DataLoader indexes with a whole job at once."""

    def __init__(self, frames: GraphFrames) -> None:
        self.frames = frames

    def __getitem__(self, job: tuple[np.ndarray, bool]) -> Graph:
        return _assemble(self.frames, job)


class _JobQueue:
    """Batch sampler over the jobs of the current epoch; each "batch of indices" is one job."""

    def __init__(self) -> None:
        self.jobs: list[tuple[np.ndarray, bool]] = []

    def __iter__(self) -> Iterator[list[tuple[np.ndarray, bool]]]:
        return iter([[job] for job in self.jobs])

    def __len__(self) -> int:
        return len(self.jobs)


def _first(items: list[Graph]) -> Graph:
    return items[0]
