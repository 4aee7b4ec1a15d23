"""Equivariant messages on a graph: gather, weigh, couple with edge harmonics, sum onto targets, in one operation.

The message is one multilinear form of source features x, harmonics Y, radial functions g and weights W:

``z[i, (l3 m3), (p c)] = sum_j W[r, (p c)] g[ij, r] c^p[m1, m2, m3] Y[ij, l2 m2] x[j, (l1 m1), c]``

summed over repeated indices and the neighbours j of i; p runs over couplings ``l1 x l2 -> l3``. Being multilinear,
all its derivatives are the same form with other arguments left open: a small family of operators is closed under
differentiation, and none of them ever holds a tensor of size edges x channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from .backends import choose
from .conventions import Path, w3j


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
            raise ValueError(
                f"row_ptr ends at {int(row_ptr[-1])} but there are {n_edges} edges: sort edges by target"
            )
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
        pointers = torch.searchsorted(
            self.source[order], torch.arange(self.n_nodes + 1, device=self.source.device)
        )
        return Rows(pointers, order, self.target)


@dataclass(frozen=True)
class Term:
    """Where one path reads and writes. Offsets point at component m = 0, channel 0; a component is `stride` apart.

    Attributes:
        path: the degrees.
        channels: channels C_l1.
        x, x_stride: in the flat source features.
        z, z_stride: in the flat messages.
        w: first column of its weights.
        table: ``(2 l1 + 1, 2 l2 + 1, 2 l3 + 1)`` coefficients, sqrt(2 l3 + 1) w3j.
    """

    path: Path
    channels: int
    x: int
    x_stride: int
    z: int
    z_stride: int
    w: int
    table: np.ndarray


class Coupling:
    """Couplings of a message and the layout of its features.

    Features are flat, degree-major, m outer, channel inner. A message of degree l3 has the channels of all paths
    into l3, in the order of the paths. Coefficients are component normalised (e3nn's "component" and "element").

    Args:
        paths: couplings ``l1 x l2 -> l3``.
        channels: channels of each source degree.
        lmax: largest degree of the harmonics.

    Attributes:
        key: text from which `Coupling.from_key` makes the same object; names the coupling in operators.
        degrees: the degrees l3 that the paths reach, ascending.
        outputs: channels of each degree in `degrees`.
        n_weights: columns of the weights, sum over paths of C_l1.
    """

    def __init__(self, paths: tuple[Path, ...], channels: tuple[int, ...], lmax: int):
        self.paths, self.channels, self.lmax = paths, channels, lmax
        self.degrees = tuple(sorted({p.l3 for p in paths}))
        self.outputs = tuple(sum(channels[p.l1] for p in paths if p.l3 == l) for l in self.degrees)
        self.n_harmonics, self.n_weights = (lmax + 1) ** 2, sum(channels[p.l1] for p in paths)
        self.x_width = sum((2 * l + 1) * c for l, c in enumerate(channels))
        self.z_sizes = [(2 * l + 1) * c for l, c in zip(self.degrees, self.outputs, strict=True)]
        self.z_width = sum(self.z_sizes)
        written = " ".join(f"{p.l1},{p.l2},{p.l3}" for p in paths)
        self.key = f"{written}|{','.join(map(str, channels))}|{lmax}"

    @staticmethod
    @lru_cache(maxsize=256)
    def from_key(key: str) -> Coupling:
        """The coupling of a key."""
        paths, channels, lmax = key.split("|")
        degrees = [[int(l) for l in path.split(",")] for path in paths.split()]
        return Coupling(tuple(Path(*d) for d in degrees), tuple(map(int, channels.split(","))), int(lmax))

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The paths with their offsets and coefficients."""
        out, w, used = [], 0, dict.fromkeys(self.degrees, 0)
        for p in self.paths:
            c, k = self.channels[p.l1], self.degrees.index(p.l3)
            x = sum((2 * l + 1) * n for l, n in enumerate(self.channels[: p.l1]))
            z = sum(self.z_sizes[:k]) + used[p.l3]
            table = sqrt(2 * p.l3 + 1) * w3j(p.l1, p.l2, p.l3)
            out.append(Term(p, c, x, c, z, self.outputs[k], w, table))
            w, used[p.l3] = w + c, used[p.l3] + c
        return tuple(out)

    def split(self, z: Tensor) -> list[Tensor]:
        """Views ``(N, 2 l3 + 1, C)`` of flat messages, one per degree in `degrees`."""
        parts = z.split(self.z_sizes, dim=-1)
        return [
            b.unflatten(-1, (2 * l + 1, c)) for b, l, c in zip(parts, self.degrees, self.outputs, strict=True)
        ]


def message(x: Tensor, edges: Tensor, weights: Tensor, plan: GraphPlan, coupling: Coupling) -> Tensor:
    """Messages of a graph, see the module's formula.

    Args:
        x: ``(N, coupling.x_width)`` source features.
        edges: ``(E, (lmax+1)^2 + R)`` harmonics and radial functions of every edge, side by side.
        weights: ``(R, coupling.n_weights)``.
        plan: the graph.
        coupling: the paths.

    Returns:
        ``(N, coupling.z_width)``; `Coupling.split` gives the degrees.

    Raises:
        ValueError: shapes that do not fit.

    Source: Facet (arXiv 2509.08418), spline radial weights and convolution (sheet 4.3, 4.4); derivatives after
    the family of Gaunt tensor products (arXiv 2401.10216).
    """
    wanted = (coupling.n_harmonics + weights.shape[0], coupling.n_weights)
    if (edges.shape[-1], weights.shape[-1]) != wanted or x.shape[-1] != coupling.x_width:
        raise ValueError(
            f"message needs x (N, {coupling.x_width}), edges (E, {wanted[0]}) and weights (R, {wanted[1]}), "
            f"got {tuple(x.shape)}, {tuple(edges.shape)} and {tuple(weights.shape)}"
        )
    if choose(x, "message") == "reference":
        return reference_message(x, edges, weights, plan, coupling)
    from .message_ops import message_op

    result: Tensor = message_op(
        x, edges, weights, plan.rows.tensors, plan.columns.tensors, coupling.key, False
    )
    return result


def reference_message(
    x: Tensor, edges: Tensor, weights: Tensor, plan: GraphPlan, coupling: Coupling
) -> Tensor:
    """`message` in plain torch, one tensor per path and edge: the oracle, and what compilers can look into."""
    harmonics, radial = edges.split([coupling.n_harmonics, weights.shape[0]], dim=-1)
    w, sources = radial @ weights, x.index_select(0, plan.source)
    parts: dict[int, list[Tensor]] = {l: [] for l in coupling.degrees}
    for t in coupling.terms:
        l1, l2, l3 = t.path.l1, t.path.l2, t.path.l3
        table = torch.from_numpy(t.table).to(x.device, x.dtype)
        y = harmonics[:, l2 * l2 : (l2 + 1) ** 2]
        own = sources[:, t.x : t.x + (2 * l1 + 1) * t.channels].unflatten(1, (2 * l1 + 1, t.channels))
        coupled = torch.einsum("eac,eac->eac", own, w[:, None, t.w : t.w + t.channels].expand_as(own))
        parts[l3].append(torch.einsum("abd,eb,eac->edc", table, y, coupled))
    flat = torch.cat([torch.cat(parts[l], dim=-1).flatten(1) for l in coupling.degrees], dim=-1)
    return flat.new_zeros(plan.n_nodes, flat.shape[1]).index_add(0, plan.target, flat)


def species_density(
    edges: Tensor, species: Tensor, n_species: int, n_harmonics: int, plan: GraphPlan
) -> Tensor:
    """Sums over neighbours of harmonics times radial functions, apart for every species of neighbour.

    ``d[i, k, (s, r)] = sum over neighbours j of species s of Y[ij, k] g[ij, r]``: what a message needs to know when
    all source features are functions of the species; no channel is touched.

    Args:
        edges: ``(E, n_harmonics + R)`` harmonics and radial functions, side by side.
        species: ``(N,)`` species of every node, 0..n_species - 1.
        n_species: number of species.
        n_harmonics: columns of the harmonics.
        plan: the graph.

    Returns:
        ``(N, n_harmonics, n_species R)``.
    """
    neighbours = species.index_select(0, plan.source)
    if choose(edges, "species_density") == "reference":
        y, g = edges.split([n_harmonics, edges.shape[1] - n_harmonics], dim=-1)
        pairs = y.unsqueeze(2) * g.unsqueeze(1)
        flat = pairs.new_zeros(plan.n_nodes * n_species, n_harmonics, g.shape[1])
        flat = flat.index_add(0, plan.target * n_species + neighbours, pairs)
        return flat.unflatten(0, (plan.n_nodes, n_species)).transpose(1, 2).flatten(2)
    from .density_ops import density_op

    result: Tensor = density_op(edges, neighbours, plan.row_ptr, n_species, n_harmonics)
    return result
