"""The edges of a ragged batch of molecules: every ordered pair of atoms of one molecule."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .noise import centred


@dataclass(frozen=True)
class Layout:
    """Which atoms belong together, and all ordered pairs (source j, target i), sorted by target, then source.

    n_atoms: ``(G,)``. batch, local: ``(N,)`` molecule of each atom and its number there. edge_index: ``(2, E)``.
    reverse: ``(E,)`` place of the edge i → j. pairs: ``(E/2,)`` the edges with source < target.
    """

    n_atoms: Tensor
    batch: Tensor
    local: Tensor
    edge_index: Tensor
    reverse: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, n_atoms: Tensor) -> Layout:
        """The layout of molecules with `n_atoms` ``(G,)`` int64 atoms, on its device."""
        device, n_total = n_atoms.device, int(n_atoms.sum())
        atoms = torch.arange(n_total, device=device)
        batch = torch.repeat_interleave(torch.arange(len(n_atoms), device=device), n_atoms)
        first = (n_atoms.cumsum(0) - n_atoms)[batch]
        local = atoms - first
        degree = n_atoms[batch] - 1
        row = degree.cumsum(0) - degree
        target = torch.repeat_interleave(atoms, degree)
        place = torch.arange(len(target), device=device) - row[target]
        i = local[target]
        j = place + (place >= i)
        source = first[target] + j
        reverse = row[source] + i - (i > j).long()
        pairs = torch.nonzero(source < target).squeeze(1)
        return cls(n_atoms, batch, local, torch.stack([source, target]), reverse, pairs)

    @property
    def n_molecules(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def edge_batch(self) -> Tensor:
        """Molecule of each edge ``(E,)``."""
        return self.batch[self.edge_index[1]]

    @cached_property
    def degree(self) -> Tensor:
        """Edges towards each atom ``(N,)``."""
        return (self.n_atoms - 1)[self.batch]

    @cached_property
    def bonded(self) -> Tensor:
        """Both edges ``(2, E/2)`` of each pair."""
        return torch.stack([self.pairs, self.reverse[self.pairs]])

    @property
    def movable(self) -> None:
        """All atoms move."""
        return None

    @property
    def n_movable(self) -> Tensor:
        return self.n_atoms

    def centred(self, x: Tensor) -> Tensor:
        """`x` ``(N, …)`` minus the mean of its molecule."""
        return centred(x, self.batch, self.n_atoms)

    def both_ways(self, values: Tensor) -> Tensor:
        """Values of all edges ``(E, …)`` from those of the pairs ``(E/2, …)``."""
        full = values.new_empty(len(self.reverse), *values.shape[1:])
        full[self.pairs] = values
        full[self.reverse[self.pairs]] = values
        return full

    def to(self, device: Any) -> Layout:
        return Layout(*(getattr(self, field.name).to(device) for field in fields(self)))
