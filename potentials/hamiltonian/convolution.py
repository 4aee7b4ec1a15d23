"""Messages between atoms with weights made from the distance and from invariants of both ends (QHNet's convolution)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...kernels.conventions import coupling_paths
from ...kernels.plan import GraphPlan
from ...kernels.weighted import weighted_message
from .gates import DensePaths, PairGate
from .molecules import Edges, Molecules, orbital_harmonics
from .scalars import Bernstein, Idle, Weigher
from .steerable import Gate, Linear, inner_products

SLICE = 512
"""Edges whose weights are held at once where no gradients are needed."""


@dataclass(frozen=True)
class Near:
    """What all convolutions of one evaluation share.

    Attributes:
        edges: the graph.
        harmonics: ``(E, (L+1)^2)``.
        radial: ``(E, n)`` radial functions.
        molecule: ``(E,)`` molecule of each edge.
        n_molecules: number of molecules.
    """

    edges: Edges
    harmonics: Tensor
    radial: Tensor
    molecule: Tensor
    n_molecules: int

    @classmethod
    def of(cls, molecules: Molecules, cutoff: float, lmax: int, radial: Bernstein) -> Near:
        """Of all pairs within a cutoff (Å)."""
        edges = molecules.edges(cutoff)
        return cls(
            edges,
            orbital_harmonics(edges.vectors, lmax),
            radial(edges.lengths),
            molecules.batch[edges.plan.target],
            molecules.n_molecules,
        )

    def select(self, kept: Tensor) -> Near:
        """The edges of these indices, which must ascend."""
        return Near(
            self.edges.select(kept),
            self.harmonics[kept],
            self.radial[kept],
            self.molecule[kept],
            self.n_molecules,
        )


class Convolution(nn.Module):
    """``x_i <- x_i + Linear(u_i + sum_j w_ij (u_j (x) Y_ij))``, u = Linear(Gate(x)).

    The weights are a product of two networks, of the radial functions and of the invariants of the pair
    ``[x_i^0, x_j^0, <x_i, x_j>_l]`` after a linear map. (Released QHNet code has x_i^0 twice and x_j^0 nowhere; this
    is the corrected form.)

    Args:
        channels: C.
        lmax: largest degree L.
        n_radial: number of radial functions.
        hidden: width of the weight networks.
        radial_size: size that first weights make up for, see `Weigher`.
        sparsity: fraction of edges that a gate leaves out; None: no gate.

    Source: QHNet (arXiv 2306.04922), node-wise interaction, sheet 4.4; SPHNet (arXiv 2502.01171), sheet 5.2.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        *,
        n_radial: int,
        hidden: int,
        radial_size: float = 1.0,
        sparsity: float | None = None,
    ):
        super().__init__()
        n = lmax + 1
        degrees = tuple(range(n))
        self.lmax, self.paths = lmax, coupling_paths(degrees, lmax, degrees, "o3")
        self.choice = DensePaths(self.paths)
        self.scalars = Linear(n, channels, channels)
        self.gate, self.inner = Gate(n, channels), Linear(n, channels, channels)
        self.radial = Weigher(n_radial, hidden, len(self.paths), channels, size=radial_size)
        self.state = Weigher((n + 1) * channels, hidden, len(self.paths), channels)
        self.outer = Linear(n, channels, channels)
        self.pair_gate = None if sparsity is None else PairGate((n + 1) * channels, sparsity)

    def forward(self, x: Tensor, near: Near) -> Tensor:
        """Features ``(N, (L+1)^2, C)`` after the layer."""
        s = self.scalars(x)
        target, source = near.edges.plan.target, near.edges.plan.source
        products = inner_products(*(s.index_select(0, k) for k in (target, source)))
        scalars = (s[:, 0].index_select(0, k) for k in (target, source))
        invariants = torch.cat([*scalars, products.flatten(1)], dim=1)
        if self.pair_gate is not None:
            kept, factors = self.pair_gate(invariants, near.molecule, near.n_molecules)
            invariants, near = invariants.index_select(0, kept) * factors, near.select(kept)
        u = self.inner(self.gate(x))
        hidden = self.radial.hidden(near.radial), self.state.hidden(invariants)
        return x + self.outer(u + _weigh_and_sum(self, u, hidden, near))  # type: ignore[no-any-return]


class FirstConvolution(nn.Module):
    """The first layer, from scalars alone: ``x_i = Linear(sum_j w_ij (u_j (x) Y_ij))``, invariants [u_i, u_j].

    Args:
        channels, lmax, n_radial, hidden, radial_size: as of `Convolution`.
        idle: also make the tensors that the released code makes and never uses.

    Source: QHNet (arXiv 2306.04922), sheet 4.4.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        *,
        n_radial: int,
        hidden: int,
        radial_size: float = 1.0,
        idle: bool = False,
    ):
        super().__init__()
        self.lmax, self.paths = lmax, coupling_paths((0,), lmax, tuple(range(lmax + 1)), "o3")
        self.choice = DensePaths(self.paths)
        self.radial = Weigher(n_radial, hidden, len(self.paths), channels, size=radial_size)
        self.state = Weigher(2 * channels, hidden, len(self.paths), channels)
        self.outer = Linear(lmax + 1, channels, channels)
        if idle:
            square = (channels, channels)
            self.idle = Idle(*4 * [square, square[:1]])

    def forward(self, u: Tensor, near: Near) -> Tensor:
        """Features ``(N, (L+1)^2, C)`` from scalars ``(N, C)``."""
        plan = near.edges.plan
        invariants = torch.cat([u.index_select(0, plan.target), u.index_select(0, plan.source)], dim=1)
        hidden = self.radial.hidden(near.radial), self.state.hidden(invariants)
        return self.outer(_weigh_and_sum(self, u.unsqueeze(1), hidden, near))  # type: ignore[no-any-return]


def _weigh_and_sum(
    layer: Convolution | FirstConvolution, u: Tensor, hidden: tuple[Tensor, Tensor], near: Near
) -> Tensor:
    """Messages whose weights are the product of two linear maps; edges in slices where nothing is recorded."""
    radial, state = layer.radial.outer(layer.choice()).T, layer.state.outer().T

    def evaluate(edges: slice, plan: GraphPlan) -> Tensor:
        weights = (hidden[0][edges] @ radial) * (hidden[1][edges] @ state)
        shaped = weights.unflatten(1, (len(layer.paths), -1))
        return weighted_message(u, near.harmonics[edges], shaped, plan, layer.paths, layer.lmax)

    plan = near.edges.plan
    if torch.is_grad_enabled() or len(near.edges) <= SLICE:
        return evaluate(slice(None), plan)
    return torch.cat([evaluate(edges, part) for edges, part in _slices(plan)])


def _slices(plan: GraphPlan) -> list[tuple[slice, GraphPlan]]:
    """Targets in groups of about `SLICE` edges."""
    pointers, parts, first = plan.row_ptr.tolist(), [], 0
    while first < plan.n_nodes:
        last = first + 1
        while last < plan.n_nodes and pointers[last + 1] - pointers[first] <= SLICE:
            last += 1
        edges = slice(pointers[first], pointers[last])
        part = GraphPlan(
            plan.source[edges], plan.target[edges] - first, plan.row_ptr[first : last + 1] - pointers[first]
        )
        parts.append((edges, part))
        first = last
    return parts
