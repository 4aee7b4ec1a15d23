"""Batch of molecules as a Hamiltonian network sees it: atoms, and every pair of atoms of a molecule once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.errors import UserError
from ...datasets.structure import Structure
from ...kernels.conventions import FROM_Z_POLAR
from ...kernels.harmonics import spherical_harmonics
from ...kernels.plan import GraphPlan
from .layout import Blocks, pair_index


@dataclass(frozen=True)
class Edges:
    """Directed edges between atoms, sorted by target; edge e leads from the source j to the target i.

    Attributes:
        plan: the graph.
        vectors: ``(E, 3)`` Å, r_j - r_i.
        lengths: ``(E,)`` Å.
    """

    plan: GraphPlan
    vectors: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def select(self, kept: Tensor) -> Edges:
        """The edges of these indices, which must ascend."""
        target = self.plan.target[kept]
        plan = GraphPlan(self.plan.source[kept], target, _pointers(target, self.plan.n_nodes))
        return Edges(plan, self.vectors[kept], self.lengths[kept])


@dataclass(frozen=True)
class Molecules:
    """G closed-shell neutral molecules with N atoms and P pairs of atoms of the same molecule.

    Attributes:
        numbers: ``(N,)`` atomic numbers.
        positions: ``(N, 3)`` Å.
        batch: ``(N,)`` molecule of each atom.
        n_atoms: ``(G,)``.
        pairs: ``(2, P)`` atoms i > j of each pair, molecule by molecule, in the order of `layout.pair_index`.
        pair_batch: ``(P,)`` molecule of each pair.
        n_pairs: ``(G,)``.
        targets: blocks that a network shall reproduce, Hartree; None where nobody asks.
    """

    numbers: Tensor
    positions: Tensor
    batch: Tensor
    n_atoms: Tensor
    pairs: Tensor
    pair_batch: Tensor
    n_pairs: Tensor
    targets: Blocks | None = None

    @classmethod
    def of(
        cls,
        numbers: np.ndarray | Tensor,
        positions: np.ndarray | Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        targets: Blocks | None = None,
    ) -> Molecules:
        """One molecule.

        Args:
            numbers: ``(n,)`` atomic numbers.
            positions: ``(n, 3)`` Å.
            dtype: of the positions.
            targets: blocks to learn, Hartree.

        Raises:
            UserError: no atoms, shapes that do not fit, positions that are not finite.
        """
        z = torch.as_tensor(numbers, dtype=torch.int64)
        r = torch.as_tensor(positions, dtype=dtype)
        n = z.shape[0] if z.ndim == 1 else 0
        if n == 0 or r.shape != (n, 3):
            raise UserError(
                f"a molecule needs numbers (n,) and positions (n, 3), got {tuple(z.shape)} and {tuple(r.shape)}"
            )
        if not bool(torch.isfinite(r).all()):
            raise UserError("positions of a molecule must be finite numbers")
        pairs = pair_index(n)
        if targets is not None and (len(targets.diagonal), len(targets.lower)) != (n, pairs.shape[1]):
            raise UserError(
                f"targets of {n} atoms need {n} diagonal and {pairs.shape[1]} lower blocks, got "
                f"{len(targets.diagonal)} and {len(targets.lower)}"
            )
        zeros = torch.zeros(max(n, pairs.shape[1]), dtype=torch.int64)
        counts = torch.tensor([n]), torch.tensor([pairs.shape[1]])
        return cls(z, r, zeros[:n], counts[0], pairs, zeros[: pairs.shape[1]], counts[1], targets)

    @classmethod
    def from_structure(cls, structure: Structure, *, dtype: torch.dtype = torch.float32) -> Molecules:
        """One molecule from the data layer.

        Raises:
            UserError: a periodic, charged or open-shell structure; the networks predict one closed-shell matrix.
        """
        name = structure.formula
        if structure.pbc.any():
            raise UserError(f"{name} is periodic: Hamiltonian models are for molecules; set pbc to False")
        if structure.charge:
            raise UserError(f"{name} has charge {structure.charge:g}: Hamiltonian models are for neutral molecules")
        electrons = int(structure.numbers.sum())
        if electrons % 2 or structure.spin not in (None, 1):
            told = "" if structure.spin is None else f", multiplicity {structure.spin}"
            raise UserError(
                f"{name} is open-shell ({electrons} electrons{told}): Hamiltonian models are for closed shells"
            )
        return cls.of(structure.numbers, structure.positions, dtype=dtype)

    @property
    def n_molecules(self) -> int:
        """Number of molecules."""
        return self.n_atoms.shape[0]

    def pair_vectors(self) -> Tensor:
        """``(P, 3)`` Å, r_j - r_i."""
        i, j = self.pairs
        return self.positions.index_select(0, j) - self.positions.index_select(0, i)

    def edges(self, cutoff: float) -> Edges:
        """Both directions of all pairs closer than ``cutoff`` (Å), all of them for an infinite one."""
        i, j = self.pairs
        with torch.no_grad():
            near = (self.pair_vectors().square().sum(1) < cutoff**2).nonzero()[:, 0]
            i, j = i[near], j[near]
            target, order = torch.sort(torch.cat([i, j]), stable=True)
            source = torch.cat([j, i])[order]
        plan = GraphPlan(source, target, _pointers(target, self.numbers.shape[0]))
        vectors = self.positions.index_select(0, source) - self.positions.index_select(0, target)
        return Edges(plan, vectors, vectors.square().sum(1).sqrt())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Molecules:
        """The same molecules on another device, positions and targets in another precision.

        Copies from pinned memory do not block.
        """

        def move(t: Tensor) -> Tensor:
            pinned = device is not None and t.device.type == "cpu" and t.is_pinned()
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None, non_blocking=pinned)

        return self._map(move)

    def pin_memory(self) -> Molecules:
        """The same in page-locked memory (the hook that torch's DataLoader calls)."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Molecules:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = function(value)
            elif isinstance(value, Blocks):
                values[name] = Blocks(function(value.diagonal), function(value.lower))
        return Molecules(**values)


def collate(molecules: Sequence[Molecules]) -> Molecules:
    """Concatenate molecules into one batch, in the given order.

    Raises:
        UserError: no molecules, or targets for some of them only.
    """
    if not molecules:
        raise UserError("cannot batch an empty list of molecules")
    targets = [m.targets for m in molecules if m.targets is not None]
    if targets and len(targets) != len(molecules):
        raise UserError(f"{len(targets)} of {len(molecules)} molecules have targets: all or none must")
    atoms = np.cumsum([0, *(m.numbers.shape[0] for m in molecules)]).tolist()
    before = np.cumsum([0, *(m.n_molecules for m in molecules)]).tolist()
    return Molecules(
        numbers=torch.cat([m.numbers for m in molecules]),
        positions=torch.cat([m.positions for m in molecules]),
        batch=torch.cat([m.batch + start for m, start in zip(molecules, before, strict=False)]),
        n_atoms=torch.cat([m.n_atoms for m in molecules]),
        pairs=torch.cat([m.pairs + start for m, start in zip(molecules, atoms, strict=False)], dim=1),
        pair_batch=torch.cat([m.pair_batch + start for m, start in zip(molecules, before, strict=False)]),
        n_pairs=torch.cat([m.n_pairs for m in molecules]),
        targets=Blocks(torch.cat([t.diagonal for t in targets]), torch.cat([t.lower for t in targets]))
        if targets
        else None,
    )


def orbital_harmonics(vectors: Tensor, lmax: int) -> Tensor:
    """Harmonics ``(E, (lmax+1)^2)`` of directions in the axes of orbitals: degree 1 is (y, z, x), see `layout`."""
    return spherical_harmonics(vectors[:, FROM_Z_POLAR], lmax)


def _pointers(target: Tensor, n_nodes: int) -> Tensor:
    """``(n_nodes + 1,)`` first edge of every target."""
    return torch.searchsorted(target, torch.arange(n_nodes + 1, device=target.device))
