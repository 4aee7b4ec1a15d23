"""Groups of atoms for messages over long distances.

The default groups are deterministic, free of the atoms' order, turn with the molecule and change smoothly with it: the
atom that is farthest from all earlier centres becomes a centre, together with all atoms that are nearly as far, by a
weight that fades to zero; atoms belong to the near centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .molecules import Molecules

WINDOW = 1.0
"""Å within which the farthest is no clear choice."""
REACH = 1.5
"""Å, width of a group: an atom belongs to a centre at distance r by exp(-r^2 / (2 REACH^2)), relative to the others."""
ATOMS_PER_GROUP = 4
SWEEPS = 20  # of k-means


@dataclass(frozen=True)
class Groups:
    """Groups of the atoms of some molecules.

    Attributes:
        atom, group: ``(M,)`` which atom belongs to which group.
        weight: ``(M,)`` how much.
        presence: ``(Q,)`` how much a group counts, 0 to 1.
        molecule: ``(Q,)``.
    """

    atom: Tensor
    group: Tensor
    weight: Tensor
    presence: Tensor
    molecule: Tensor

    def mean(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """``(Q, ...)`` means over members of values ``(N, ...)``, weighted by ``(N,)`` too if given."""
        share = self.weight if weights is None else self.weight * weights.index_select(0, self.atom)
        total = share.new_zeros(len(self.presence)).index_add(0, self.group, share)
        share = (share / total.index_select(0, self.group)).view(-1, *[1] * (values.ndim - 1))
        out = values.new_zeros(len(self.presence), *values.shape[1:])
        return out.index_add(0, self.group, values.index_select(0, self.atom) * share)


def farthest_groups(molecules: Molecules) -> Groups:
    """One round of new centres per four atoms, at least one: see the module's first lines."""
    positions, real = _padded(molecules)
    rounds = (molecules.n_atoms // ATOMS_PER_GROUP).clamp(min=1)
    apart = _lengths(positions.unsqueeze(2) - positions.unsqueeze(1)) * (real[:, :, None] & real[:, None, :])
    centroid = positions.sum(1, keepdim=True) / molecules.n_atoms[:, None, None]
    score = _lengths(positions - centroid)
    nearest = apart.amax((1, 2)).unsqueeze(1).expand_as(score)
    presence = torch.zeros_like(score)
    for k in range(int(rounds.max())):
        farthest = score.masked_fill(~real, -1.0).amax(1, keepdim=True)
        chosen = _fade((farthest - score) / WINDOW) * (real & (k < rounds).unsqueeze(1))
        presence = torch.maximum(presence, chosen)
        closer = chosen.unsqueeze(1) * (nearest.unsqueeze(2) - apart).clamp(min=0)
        nearest = nearest - closer.amax(2)
        score = nearest
    centre = presence > 0
    decay = torch.where(centre, presence, 1.0).log().unsqueeze(1) - apart.square() / (2 * REACH**2)
    belongs = decay.masked_fill(~centre.unsqueeze(1), -torch.inf).softmax(2) * real.unsqueeze(2)
    return _listed(belongs, presence, molecules)


def kmeans_groups(molecules: Molecules, seed: int = 0) -> Groups:
    """Groups of the released code: k-means from random atoms, which depends on the atoms' order and jumps.

    Without a full group of four, every atom is its own.
    """
    positions, real = _padded(molecules)
    membership = torch.zeros(*real.shape, real.shape[1], dtype=positions.dtype, device=positions.device)
    for g, n in enumerate(molecules.n_atoms.tolist()):
        count = n // ATOMS_PER_GROUP or n
        own = positions[g, :n].detach()
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(own.device)
        centres = own[order[:count]]
        for _ in range(SWEEPS):
            label = torch.cdist(own, centres).argmin(1)
            hot = torch.nn.functional.one_hot(label, count).to(own)
            centres = torch.where(hot.sum(0)[:, None] > 0, hot.T @ own / hot.sum(0)[:, None].clamp(min=1), centres)
        membership[g, :n, :count] = hot
    return _listed(membership, (membership.sum(1) > 0).to(positions), molecules)


def _padded(molecules: Molecules) -> tuple[Tensor, Tensor]:
    """Positions ``(G, n, 3)`` of molecules side by side, and which are real ``(G, n)``."""
    places = torch.arange(int(molecules.n_atoms.max()), device=molecules.n_atoms.device)
    real = places < molecules.n_atoms.unsqueeze(1)
    positions = molecules.positions.new_zeros(*real.shape, 3)
    return positions.masked_scatter(real.unsqueeze(2), molecules.positions), real


def _listed(belongs: Tensor, presence: Tensor, molecules: Molecules) -> Groups:
    """Groups from memberships ``(G, n, n)`` of atoms in groups, and presences ``(G, n)``."""
    first = molecules.n_atoms.cumsum(0) - molecules.n_atoms
    molecule, place = (presence > 0).nonzero().unbind(1)
    number = torch.zeros_like(presence, dtype=torch.int64)
    number[molecule, place] = torch.arange(len(place), device=place.device)
    of, atom, group = (belongs > 0).nonzero().unbind(1)
    return Groups(first[of] + atom, number[of, group], belongs[of, atom, group], presence[molecule, place], molecule)


def _lengths(vectors: Tensor) -> Tensor:
    """Lengths with derivative zero at zero."""
    squares = vectors.square().sum(-1)
    return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)


def _fade(x: Tensor) -> Tensor:
    """1 for x <= 0, 0 for x >= 1, once differentiable."""
    t = x.clamp(0.0, 1.0)
    return (1 - t * t).square()
