"""What a network sees of its own last estimate, and how many bonds each atom has there and in x_t.

The classes of a step are drawn independently of each other, so that few large steps leave atoms with too many bonds;
attention, a mean over neighbours, counts them badly. Source: Chen, Zhang, Hinton, "Analog Bits", arXiv 2208.04202,
section 2.2 (self-conditioning); counts of bonds: Vignac et al., DiGress, arXiv 2209.14734, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import Layout
from .molecules import Molecules


def channel_numbers(atoms: int, bonds: int) -> tuple[int, int]:
    """Further channels of atoms and of edges, for `atoms` and `bonds` channels of the classes."""
    return atoms + 2 * bonds, bonds + 1


def estimate_channels(noisy: Molecules, atoms: Tensor, bonds: Tensor) -> tuple[Tensor, Tensor]:
    """Further channels of atoms ``(N, A + 2 B)`` and edges ``(E, B + 1)``.

    Of atoms: probabilities of the classes, bonds of each class in the estimate and in x_t. Of edges: probabilities of
    the bonds, distance in Å. All of the estimate are zero where there is none yet.

    Args:
        noisy: x_t, with `noisy.estimate` or without.
        atoms, bonds: channels ``(N, A)`` and ``(E, B)`` of x_t.
    """
    layout, estimate = noisy.layout, noisy.estimate
    if estimate is None:
        nothing = bonds.new_zeros(len(bonds), bonds.shape[1] + 1)
        own = _per_atom(layout, bonds)
        return torch.cat([torch.zeros_like(atoms), torch.zeros_like(own), own], 1), nothing
    likely = torch.cat([logits.softmax(-1) for logits in estimate.atoms], 1).to(atoms.dtype)
    bonded = layout.both_ways(estimate.bonds.softmax(-1).to(bonds.dtype))
    j, i = layout.edge_index
    distance = (estimate.positions[i] - estimate.positions[j]).norm(dim=-1, keepdim=True).to(bonds.dtype)
    counts = [_per_atom(layout, bonded), _per_atom(layout, bonds)]
    return torch.cat([likely, *counts], 1), torch.cat([bonded, distance], 1)


def _per_atom(layout: Layout, bonds: Tensor) -> Tensor:
    """Sums ``(N, B)`` over the edges of each atom."""
    return bonds.new_zeros(len(layout.batch), bonds.shape[1]).index_add_(0, layout.edge_index[1], bonds)
