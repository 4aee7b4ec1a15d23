"""Equivariant messages on a graph: gather, couple with edge harmonics, sum onto targets.

The reference backend sums before it couples. The radial part is linear in a few basis functions, so the sum over
neighbours can be taken of ``basis (x) source features`` alone: one batched matrix product per target, dense and fast
on any hardware. Radial weights and coupling coefficients then act once per node instead of once per edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from .constants import Float64Module
from .conventions import Path, w3j


@dataclass(frozen=True)
class GraphPlan:
    """A graph whose edges are sorted by target, with the padded neighbour table that the reference backend reads.

    Attributes:
        source: ``(E,)`` node at the far end of each edge.
        target: ``(E,)`` node that receives, non-decreasing.
        slots: ``(N, D)`` edge index of the d-th neighbour; 0 where there is none.
        mask: ``(N, D)`` True where a slot holds an edge.
    """

    source: Tensor
    target: Tensor
    slots: Tensor
    mask: Tensor

    @classmethod
    def build(cls, edge_index: Tensor, row_ptr: Tensor) -> GraphPlan:
        """Plan of a graph.

        Args:
            edge_index: ``(2, E)``, row 0 the sources, row 1 the targets in non-decreasing order.
            row_ptr: ``(N + 1,)`` first edge of each target.

        Raises:
            ValueError: row_ptr does not end at the number of edges.
        """
        n_edges = edge_index.shape[1]
        if int(row_ptr[-1]) != n_edges:
            raise ValueError(
                f"row_ptr ends at {int(row_ptr[-1])} but there are {n_edges} edges: sort edges by target"
            )
        degrees = row_ptr[1:] - row_ptr[:-1]
        width = int(degrees.max()) if degrees.numel() else 0
        offsets = torch.arange(width, device=row_ptr.device)
        mask = offsets < degrees[:, None]
        slots = torch.where(mask, row_ptr[:-1, None] + offsets, 0)
        return cls(edge_index[0], edge_index[1], slots, mask)

    def with_isolated_nodes(self, n: int) -> GraphPlan:
        """The same graph with n more nodes that have no neighbours."""
        empty = self.slots.new_zeros(n, self.slots.shape[1])
        slots, mask = torch.cat([self.slots, empty]), torch.cat([self.mask, empty.bool()])
        return GraphPlan(self.source, self.target, slots, mask)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.slots.shape[0]


def neighbour_moments(basis: Tensor, features: Tensor, plan: GraphPlan) -> Tensor:
    """Sum over neighbours of ``basis (x) features``.

    Args:
        basis: ``(N, D, B)`` functions of each neighbour's vector, zero in empty slots.
        features: ``(N, F)`` node features.
        plan: the graph.

    Returns:
        ``(N, B, F)``: ``sum_d basis[i, d, b] features[source(i, d), f]``.
    """
    if plan.source.numel() == 0:
        return basis.new_zeros(plan.n_nodes, basis.shape[-1], features.shape[-1])
    neighbours = plan.source[plan.slots.flatten()]
    gathered = features.index_select(0, neighbours).view(*plan.slots.shape, features.shape[-1])
    return basis.transpose(1, 2) @ gathered


class Coupling(Float64Module):
    """Coupling coefficients of a set of paths, component normalised (e3nn's "component" and "element" conventions).

    Attributes:
        paths: couplings ``l1 x l2 -> l3``.
        channels: channels of each source degree.
        l2max: largest degree of the harmonics.
        degrees: the degrees l3 that the paths reach, ascending.
    """

    def __init__(self, paths: tuple[Path, ...], channels: tuple[int, ...], l2max: int):
        super().__init__()
        self.paths, self.channels, self.l2max = paths, channels, l2max
        self.degrees = tuple(sorted({p.l3 for p in paths}))
        for k, path in enumerate(paths):
            table = sqrt(2 * path.l3 + 1) * w3j(path.l1, path.l2, path.l3)
            matrix = table.transpose(2, 1, 0).reshape(2 * path.l3 + 1, -1)
            self.constant(f"matrix{k}", torch.from_numpy(matrix.copy()))

    def forward(self, moments: Tensor) -> list[Tensor]:
        """Couple the harmonics in the moments with the source features.

        Args:
            moments: ``(N, (l2max+1)^2, R, F)`` from `neighbour_moments`; R radial functions, F the flat feature axis
                (degree-major, m outer, channel inner).

        Returns:
            One block ``(N, 2 l3 + 1, sum over the paths into l3 of R C_l1)`` per degree l3 in `degrees`.
        """
        sizes = [(2 * l + 1) * c for l, c in enumerate(self.channels)]
        # Splits, not slices: their backward is one concatenation instead of a sum of zero-padded tensors.
        parts = [
            part.split([2 * l + 1 for l in range(self.l2max + 1)], dim=1) for part in moments.split(sizes, -1)
        ]
        blocks: dict[int, list[Tensor]] = {}
        for k, path in enumerate(self.paths):
            block = parts[path.l1][path.l2]
            if path.l1 == 0:  # w3j(0, l, l) is the identity over sqrt(2l+1): scalars need no matrix
                out = block.flatten(2)
            else:
                n, b, radial, f = block.shape
                a = 2 * path.l1 + 1
                pairs = block.reshape(n, b, radial, a, f // a).transpose(2, 3).reshape(n, b * a, -1)
                out = self.get_buffer(f"matrix{k}").to(block.dtype) @ pairs
            blocks.setdefault(path.l3, []).append(out)
        return [b[0] if len(b) == 1 else torch.cat(b, dim=-1) for b in (blocks[l] for l in self.degrees)]
