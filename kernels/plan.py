"""The graph that messages run on: edges grouped by the node that receives, and by the node that sends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Edges grouped by the node that receives.

    Attributes:
        pointers: ``(N + 1,)`` first position of each receiver's edges in `order`.
        order: ``(E,)`` edge numbers, grouped by receiver.
        sender: ``(E,)`` by edge number: the node whose features are read.
    """

    pointers: Tensor
    order: Tensor
    sender: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """As operators take it."""
        return [self.pointers, self.order, self.sender]


@dataclass(frozen=True)
class GraphPlan:
    """A graph whose edges are sorted by target.

    Attributes:
        source: ``(E,)`` node at the far end of each edge.
        target: ``(E,)`` node that receives, non-decreasing.
        row_ptr: ``(N + 1,)`` first edge of each target.
    """

    source: Tensor
    target: Tensor
    row_ptr: Tensor

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
            raise ValueError(f"row_ptr ends at {int(row_ptr[-1])} but there are {n_edges} edges: sort edges by target")
        return cls(edge_index[0].contiguous(), edge_index[1].contiguous(), row_ptr)

    def with_isolated_nodes(self, n: int) -> GraphPlan:
        """The same graph with n more nodes that have no neighbours."""
        return GraphPlan(self.source, self.target, torch.cat([self.row_ptr, self.row_ptr[-1:].expand(n)]))

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.row_ptr.shape[0] - 1

    @property
    def has_neighbours(self) -> Tensor:
        """``(N,)`` True where a node has neighbours."""
        return self.row_ptr[1:] > self.row_ptr[:-1]

    @cached_property
    def rows(self) -> Rows:
        """Edges by target."""
        return Rows(self.row_ptr, torch.arange(self.source.shape[0], device=self.source.device), self.source)

    @cached_property
    def columns(self) -> Rows:
        """Edges by source: the transposed graph, which gradients with respect to features run on."""
        order = torch.argsort(self.source, stable=True)
        pointers = torch.searchsorted(self.source[order], torch.arange(self.n_nodes + 1, device=self.source.device))
        return Rows(pointers, order, self.target)
