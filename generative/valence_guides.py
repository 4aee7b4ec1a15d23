"""Guides that leave atoms no more bonds than they have room for.

The classes of a step are drawn independently of each other, and attention counts badly: few large steps give some
atoms a bond too many, and the rest of the molecule settles around it. Both guides rank the bonds of an atom, a double
bond as two units, by their probability, and keep the likeliest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .eqgat import Prediction
from .molecules import Molecules
from .valences import AROMATIC, AROMATIC_ORDER
from .vocabulary import Vocabulary

REFUSED = -1e4  # logit


class OpenValences:
    """Leaves the atoms of a fixed part no more bonds to the free ones than they have open valences.

    A network that draws the rest of a molecule at high noise does not yet see what the fixed atoms are, and bonds them
    as if they were carbon.

    Args:
        room: ``(n,)`` int64 open valences of the fixed part, which is the first n atoms of each molecule.
        bonds: the bond order of each class, 0 first; an aromatic bond takes one valence.
    """

    def __init__(self, room: Tensor, bonds: tuple[int, ...]) -> None:
        self.room = room
        self.orders = room.new_tensor([1 if value == AROMATIC else value for value in bonds], dtype=torch.float32)

    def __call__(self, prediction: Prediction, noisy: Molecules, t: int) -> Prediction:
        layout, n = noisy.layout, len(self.room)
        source, target = layout.edge_index[:, layout.pairs]
        places = torch.nonzero((layout.local[source] < n) & (layout.local[target] >= n)).squeeze(1)
        logits, atoms = prediction.bonds[places], source[places]
        refused = beyond(logits, self.orders, atoms, self.room[layout.local[atoms]].float())
        bonds = prediction.bonds.index_put((places,), logits.masked_fill(refused, REFUSED))
        return prediction._replace(bonds=bonds)


class LargestValences:
    """Where the likeliest bonds of an atom are more than atoms of its kind ever have, the unlikeliest are refused.

    All other predictions stay as they are. An atom's kind is its likeliest element and charge; the bonds of kinds
    that are not in the table are not bounded.

    Args:
        largest: sum of bond orders, an aromatic bond 1.5, by (atomic number, charge).
        vocabulary: classes of the predictions.
        device: of the predictions.
    """

    def __init__(
        self, largest: Mapping[tuple[int, int], float], vocabulary: Vocabulary, device: torch.device | str = "cpu"
    ) -> None:
        names = list(vocabulary.atoms)
        self.columns = names.index("element"), names.index("charge")
        elements, charges = (vocabulary.atoms[name].values for name in ("element", "charge"))
        table = [[largest.get((z, q), float("inf")) for q in charges] for z in elements]
        self.largest = torch.tensor(table, device=device)
        orders = [AROMATIC_ORDER if value == AROMATIC else value for value in vocabulary.bonds.values]
        self.orders = torch.tensor(orders, dtype=torch.float32, device=device)

    def __call__(self, prediction: Prediction, noisy: Molecules, t: int) -> Prediction:
        layout = noisy.layout
        element, charge = (prediction.atoms[k].argmax(1) for k in self.columns)
        room = self.largest[element, charge]
        ends = layout.edge_index[:, layout.pairs].flatten()  # each pair twice: at its source, at its target
        order = self.orders[prediction.bonds.argmax(1)].repeat(2)
        full = torch.zeros_like(room).index_add(0, ends, order) > room
        places = torch.nonzero(full[ends]).squeeze(1)
        pairs = places % len(layout.pairs)
        refused = beyond(prediction.bonds[pairs], self.orders, ends[places], room[ends[places]])
        of_pairs = torch.zeros_like(prediction.bonds).index_add(0, pairs, refused.to(prediction.bonds.dtype))
        return prediction._replace(bonds=prediction.bonds.masked_fill(of_pairs > 0, REFUSED))


def beyond(logits: Tensor, orders: Tensor, atoms: Tensor, room: Tensor) -> Tensor:
    """Which classes ``(p, B)`` of bonds would be too many for their atom.

    A bond of order 2 has two units, with the probabilities that the order is at least 1, and at least 2. A unit is too
    much if it and the likelier units that belong to the likeliest bonds take more than the atom has.

    Args:
        logits: ``(p, B)`` of the bonds of some atoms. orders: ``(B,)`` bond order of each class.
        atoms: ``(p,)`` atom of each bond. room: ``(p,)`` what this atom has, in bond orders.
    """
    ascending = torch.argsort(orders, stable=True)
    steps = orders[ascending].diff()
    sorted_logits = logits.double()[:, ascending]
    at_least = sorted_logits.flip(1).logcumsumexp(1).flip(1)[:, 1:] - sorted_logits.logcumsumexp(1)[:, :-1]
    taken = steps * (orders[ascending][1:] <= orders[logits.argmax(1)].unsqueeze(1))
    unit_atoms = atoms.repeat_interleave(len(steps))
    rank = torch.argsort(at_least.flatten(), descending=True, stable=True)  # by log-odds, which do not saturate
    rank = rank[torch.argsort(unit_atoms[rank], stable=True)]
    weights = taken.flatten()[rank]
    before = weights.cumsum(0) - weights
    _, group, sizes = torch.unique_consecutive(unit_atoms[rank], return_inverse=True, return_counts=True)
    firsts = sizes.cumsum(0) - sizes
    likelier = torch.empty_like(before).index_put((rank,), before - before[firsts][group]).reshape(taken.shape)
    too_much = likelier + steps > room.unsqueeze(1)
    refused = torch.zeros_like(logits, dtype=torch.bool)
    refused[:, ascending[1:]] = too_much.cumsum(1) > 0
    return refused
