"""Batches of molecules for training: encoded once, kept in memory, bucketed by size, dealt out to processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..datasets.errors import UserError
from ..datasets.loader import Budget, plan_batches, share_of_rank
from ..datasets.structure import Structure
from .conditions import Conditions
from .molecules import Encoded, Molecules, collate, encode
from .pocket import PocketFacts
from .vocabulary import Vocabulary


def encode_all(
    structures: Iterable[Structure],
    vocabulary: Vocabulary,
    *,
    conditions: Conditions | None = None,
    pockets: PocketFacts | None = None,
) -> list[Encoded]:
    """Every molecule in classes; see :func:`.molecules.encode`.

    Raises:
        DataError: a molecule that does not fit the vocabulary, with its place in the sequence.
    """
    return [
        encode(s, vocabulary, f"molecule {k}", conditions=conditions, pockets=pockets) for k, s in enumerate(structures)
    ]


class MoleculeLoader:
    """Batches of one epoch after the other; the protocol of `training.fit`: seek, len, iteration, state.

    Args:
        molecules: encoded.
        batch_size, max_atoms, max_edges: limits of one batch of all processes; an edge is an ordered pair of atoms.
        shuffle: a new order in each epoch, from `seed`; else that of the data.
        rank, world_size: this process takes its share of each batch.
        dtype: of positions.
    """

    def __init__(
        self,
        molecules: Sequence[Encoded],
        *,
        batch_size: int | None = None,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not molecules:
            raise UserError("the data set has no molecules")
        self.molecules, self.budget = molecules, Budget(batch_size, max_atoms, max_edges)
        self.shuffle, self.seed, self.rank, self.world_size, self.dtype = (
            shuffle,
            seed,
            rank,
            world_size,
            dtype,
        )
        n = np.array([len(m.atoms) for m in molecules], dtype=np.int64)
        self.sizes = np.stack([n, np.array([m.n_edges for m in molecules], dtype=np.int64)], 1)
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

    def __iter__(self) -> Iterator[Molecules]:
        start, self._start = self._start, 0
        for batch in self._plan[start:]:
            share = share_of_rank(batch, self.sizes, self.rank, self.world_size)
            if len(share):
                yield collate([self.molecules[k] for k in share], self.dtype)
            else:
                yield replace(collate([self.molecules[batch[0]]], self.dtype), weight=0.0)

    def state_dict(self) -> dict[str, Any]:
        """What the order of batches depends on; the position itself is kept by the trainer."""
        limits = {name: getattr(self.budget, name) for name in ("batch_size", "max_atoms", "max_edges")}
        return {
            "n_molecules": len(self.molecules),
            "n_atoms": int(self.sizes[:, 0].sum()),
            "shuffle": self.shuffle,
            "seed": self.seed,
            **limits,
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
        return plan_batches(self.sizes, self.budget, shuffle=self.shuffle, seed=self.seed, epoch=epoch)
