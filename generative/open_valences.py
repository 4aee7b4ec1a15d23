"""A fixed part grows only where it has valences to spare."""

from __future__ import annotations

import torch
from torch import Tensor

from .eqgat import Prediction
from .molecules import Molecules

AROMATIC = 4
REFUSED = -1e4  # logit


class OpenValences:
    """A guide that leaves the atoms of a fixed part no more bonds to the free ones than they have open valences.

    A network that draws the rest of a molecule at high noise does not yet see what the fixed atoms are, and bonds them
    as if they were carbon. Here, in each step, the free atoms of a molecule are ranked at every fixed atom by their
    probability of a bond to it; one after the other may have a bond of an order up to what those before have left.

    Args:
        room: ``(n,)`` int64 open valences of the fixed part, which is the first n atoms of each molecule.
        bonds: the bond order of each class, 0 first.
    """

    def __init__(self, room: Tensor, bonds: tuple[int, ...]) -> None:
        self.room = room
        self.orders = torch.tensor([1 if value == AROMATIC else value for value in bonds], device=room.device)

    def __call__(self, prediction: Prediction, noisy: Molecules, t: int) -> Prediction:
        layout, n = noisy.layout, len(self.room)
        source, target = layout.edge_index[:, layout.pairs]
        places = torch.nonzero((layout.local[source] < n) & (layout.local[target] >= n)).squeeze(1)
        logits, atoms = prediction.bonds[places], source[places]
        left = self.room[layout.local[atoms]] - self._taken(logits, atoms)
        refused = self.orders > left.clamp(min=0).unsqueeze(1)
        bonds = prediction.bonds.index_put((places,), logits.masked_fill(refused, REFUSED))
        return prediction._replace(bonds=bonds)

    def _taken(self, logits: Tensor, atoms: Tensor) -> Tensor:
        """For each pair, the valences ``(p,)`` of its fixed atom that likelier partners take."""
        likeliest = self.orders[logits.argmax(1)]
        order = torch.argsort(logits.log_softmax(1)[:, 0], stable=True)  # the least likely to have no bond first
        order = order[torch.argsort(atoms[order], stable=True)]
        before = likeliest[order].cumsum(0) - likeliest[order]
        _, group, sizes = torch.unique_consecutive(atoms[order], return_inverse=True, return_counts=True)
        firsts = sizes.cumsum(0) - sizes
        return torch.empty_like(before).index_put((order,), before - before[firsts][group])
