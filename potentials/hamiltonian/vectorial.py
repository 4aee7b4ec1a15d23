"""SPHNet's first part: invariants of every atom from a network of scalars and vectors, near and far.

Scalars are ``(N, H)``, vectors ``(N, 3, H)``. Departures from the released code, unless `published`: vectors start from
the neighbours instead of zero, the second half of the first linear map starts the far branch, atom groups are those of
`groups.farthest_groups`, all messages fade out at their cutoffs, and the norm of vectors has a finite slope at zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .groups import Groups, farthest_groups, kmeans_groups
from .molecules import Molecules
from .scalars import ExpNormal, Idle, cosine_cutoff, mlp

ELEMENTS = 100  # rows of the tables of elements
FAR_RADIAL_CUTOFF = 15.0  # Å, of the radial functions between atoms and groups
SOFT = 1e-2  # lengths of vectors that are noise or symmetry
CLOSE = 0.3  # Å below which the direction to a group's centre has no meaning


@dataclass(frozen=True)
class Links:
    """Edges from sources to the atoms that receive.

    Attributes:
        target, source: ``(E,)``.
        unit: ``(E, 3)`` directions.
        envelope: ``(E, 1)``.
    """

    target: Tensor
    source: Tensor
    unit: Tensor
    envelope: Tensor

    def sum(self, messages: Tensor, n: int) -> Tensor:
        """``(n, ...)`` sums over edges."""
        return messages.new_zeros(n, *messages.shape[1:]).index_add(0, self.target, messages)


def scaled_vectors(v: Tensor, soft: float) -> Tensor:
    """Vectors ``(N, 3, H)`` whose lengths are mapped to 0..1 by the smallest and largest of the atom's channels.

    ``v (n - n_min) / ((n + s) (n_max - n_min + s))``, n the lengths; s = 0 is the published form, whose result jumps
    where all vectors vanish.
    """
    squares = v.square().sum(1, keepdim=True)
    if soft:
        n = (squares + soft**2).sqrt() - soft
    else:
        n = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
    low, high = n.amin(2, keepdim=True), n.amax(2, keepdim=True)
    width = high - low + soft if soft else torch.where(high > low, high - low, 1.0)
    length = n + soft if soft else torch.where(n > 0, n, 1.0)
    return v * ((n - low) / (length * width))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x; its gradient is a plain sum of rows."""
    return x.index_select(0, index)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Products of vectors, channel by channel: ``(N, H)``."""
    return (a * b).sum(1)


class AtomStart(nn.Module):
    """Scalars from the element and from the elements nearby.

    Args:
        hidden: H.
        n_radial, cutoff: of the radial functions.
    """

    def __init__(self, hidden: int, n_radial: int, cutoff: float):
        super().__init__()
        self.own, self.near = nn.Embedding(ELEMENTS, hidden), nn.Embedding(ELEMENTS, hidden)
        self.radial = ExpNormal(n_radial, cutoff)
        self.filter, self.edge = nn.Linear(n_radial, hidden), nn.Linear(n_radial, hidden)
        self.mix = nn.Linear(2 * hidden, hidden)

    def forward(self, numbers: Tensor, links: Links, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars ``(N, H)``, vectors ``(N, 3, H)`` and edge features ``(E, H)``."""
        radial = self.radial(lengths)
        messages = self.near(numbers).index_select(0, links.source) * self.filter(radial) * links.envelope
        x, n = self.own(numbers), len(numbers)
        v = links.sum(messages.unsqueeze(1) * links.unit.unsqueeze(2), n)
        return self.mix(torch.cat([x, links.sum(messages, n)], dim=1)), v, self.edge(radial)


class NearLayer(nn.Module):
    """Messages between close atoms: attention by scalars, vectors, and edge features that see dihedral angles.

    Args:
        hidden, heads: H and number of heads.
        edges: whether edge features change, too.
        published: the released form, see the module.

    Source: SPHNet (arXiv 2502.01171), vectorial node interaction, sheet 5.1.
    """

    def __init__(self, hidden: int, heads: int, *, edges: bool, published: bool):
        super().__init__()
        self.heads, self.edges, self.published = heads, edges, published
        self.soft = 0.0 if published else SOFT
        self.norm = nn.LayerNorm(hidden)
        self.q, self.k, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.edge_k, self.edge_value = (nn.Linear(hidden, hidden) for _ in range(2))
        self.split, self.out = nn.Linear(hidden, 2 * hidden), nn.Linear(hidden, 3 * hidden)
        self.vectors = nn.Linear(hidden, 3 * hidden, bias=False)
        if edges:
            self.edge = nn.Linear(hidden, hidden)
            self.here, self.there = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))

    def forward(self, x: Tensor, v: Tensor, f: Tensor, links: Links) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars, vectors and edge features after the layer."""
        i, j = links.target, links.source
        s, w = self.norm(x), scaled_vectors(v, self.soft)
        strength = take(self.q(s), i) * take(self.k(s), j) * silu(self.edge_k(f))
        attention = silu(strength.unflatten(1, (self.heads, -1)).sum(2)) * links.envelope
        y = (take(self.value(s), j) * silu(self.edge_value(f))).unflatten(1, (self.heads, -1))
        y = (y * attention.unsqueeze(2)).flatten(1)
        along, out = silu(self.split(y)).unsqueeze(1).chunk(2, dim=2)
        push = take(w, j) * along + links.unit.unsqueeze(2) * out
        if not self.published:
            push = push * links.envelope.unsqueeze(2)
        first, second, third = self.out(links.sum(y, len(x))).chunk(3, dim=1)
        a, b, c = self.vectors(w).chunk(3, dim=2)
        moved = dot(a, b) * second + third, c * first.unsqueeze(1) + links.sum(push, len(x))
        if self.edges:
            f = f + silu(self.edge(f)) * self._across(take(self.here(w), i), take(self.there(w), j), links.unit)
        return x + moved[0], v + moved[1], f

    @staticmethod
    def _across(a: Tensor, b: Tensor, unit: Tensor) -> Tensor:
        """Products of the parts of two vectors that are perpendicular to the edge."""
        d = unit.unsqueeze(2)
        return dot(a, b) - dot(a, d) * dot(b, d)


class FarLayer(nn.Module):
    """Messages from groups of atoms.

    Args:
        hidden, heads: H and number of heads.
        vectors: whether vectors change, too.
        published: the released form, see the module.

    Source: SPHNet (arXiv 2502.01171), vectorial node interaction, long-range layers, sheet 5.1.
    """

    def __init__(self, hidden: int, heads: int, *, vectors: bool, published: bool):
        super().__init__()
        self.heads, self.moves = heads, vectors
        self.soft = 0.0 if published else SOFT
        self.norm, self.group_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.q, self.k, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.a, self.b, self.c, self.d = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        if vectors:
            self.radial, self.turn = mlp(hidden, hidden, hidden), mlp(hidden, hidden, hidden)
            self.e, self.f = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))

    def forward(self, x: Tensor, v: Tensor, edge: Tensor, links: Links, groups: Groups) -> tuple[Tensor, Tensor]:
        """Scalars and vectors after the layer, from edge features ``(E, H)``."""
        i, g = links.target, links.source
        s, w = self.norm(x), scaled_vectors(v, self.soft)
        group_s = self.group_norm(groups.mean(x))
        strength = (take(self.q(s), i) * take(self.k(group_s), g) * edge).unflatten(1, (self.heads, -1))
        attention = silu(strength.sum(2) / sqrt(strength.shape[2])) * links.envelope
        m = take(self.value(group_s), g).unflatten(1, (self.heads, -1))
        m = (m * attention.unsqueeze(2)).flatten(1)
        total = links.sum(m, len(x))
        moved = dot(self.a(w), self.b(w)) * self.c(total) + self.d(total)
        if not self.moves:
            return x + moved, v
        group_v = scaled_vectors(groups.mean(v), self.soft)
        pushed = self.radial(m).unsqueeze(1) * links.unit.unsqueeze(2) + self.turn(m).unsqueeze(1) * take(group_v, g)
        pushed = links.sum(pushed * links.envelope.unsqueeze(2), len(x))
        return x + moved, v + pushed + self.e(total).unsqueeze(1) * self.f(w)


class Vectorial(nn.Module):
    """Invariants ``(N, H)`` of the atoms.

    Args:
        hidden, heads: H and number of heads.
        n_radial: radial functions.
        cutoffs: Å, between atoms and between atoms and groups.
        layers: numbers of near and of far layers.
        published: the released form, see the module.

    Source: SPHNet (arXiv 2502.01171), vectorial node interaction, sheet 5.1.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        n_radial: int,
        cutoffs: tuple[float, float],
        layers: tuple[int, int],
        *,
        published: bool = False,
    ):
        super().__init__()
        self.cutoffs, self.published = cutoffs, published
        self.start = AtomStart(hidden, n_radial, cutoffs[0])
        self.scalars = nn.Linear(hidden, 2 * hidden)
        self.vectors = nn.Linear(hidden, 2 * hidden, bias=False)
        self.far_radial = ExpNormal(n_radial, FAR_RADIAL_CUTOFF)
        self.far_edge = nn.Linear(n_radial, hidden)
        near, far = layers
        self.near = nn.ModuleList(
            NearLayer(hidden, heads, edges=published or k + 1 < near, published=published) for k in range(near)
        )
        self.far = nn.ModuleList(
            FarLayer(hidden, heads, vectors=published or k + 1 < far, published=published) for k in range(far)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.out = nn.Linear(2 * hidden, hidden)
        if published:
            energy = [(hidden, 2 * hidden), (hidden,), (1, hidden), (1,)]
            radial = [(n_radial,), (n_radial,), (hidden, n_radial), (hidden,)]
            self.idle = Idle(*energy, *radial, *4 * far * [(hidden,)])

    def forward(self, molecules: Molecules) -> Tensor:
        """Invariants ``(N, H)``."""
        edges = molecules.edges(self.cutoffs[0])
        envelope = cosine_cutoff(edges.lengths, self.cutoffs[0]).unsqueeze(1)
        unit = edges.vectors / edges.lengths.unsqueeze(1)
        links = Links(edges.plan.target, edges.plan.source, unit, envelope)
        x, v, f = self.start(molecules.numbers, links, edges.lengths)
        x, far_x = self.scalars(x).chunk(2, dim=1)
        v, far_v = self.vectors(torch.zeros_like(v) if self.published else v).chunk(2, dim=2)
        for near in self.near:
            x, v, f = near(x, v, f, links)
        short = x
        groups = (kmeans_groups if self.published else farthest_groups)(molecules)
        far_links, lengths = self._far_links(molecules, groups)
        edge = self.far_edge(self.far_radial(lengths))
        if not self.published:
            x, v = x + far_x, v + far_v
        for far in self.far:
            x, v = far(x, v, edge, far_links, groups)
        invariants: Tensor = self.out(torch.cat([self.norms[0](short), self.norms[1](x)], dim=1))
        return invariants

    def _far_links(self, molecules: Molecules, groups: Groups) -> tuple[Links, Tensor]:
        """Edges from groups to the atoms of their molecule within the cutoff, and their lengths (Å)."""
        centres = groups.mean(molecules.positions, molecules.numbers.to(molecules.positions))
        same = molecules.batch.unsqueeze(1) == groups.molecule
        i, g = same.nonzero().unbind(1)
        vectors = centres[g] - molecules.positions[i]
        lengths = (vectors.square().sum(1) + 1e-12).sqrt()
        near = (lengths < self.cutoffs[1]).nonzero()[:, 0]
        i, g, vectors, lengths = i[near], g[near], vectors[near], lengths[near]
        if self.published:
            return Links(i, g, vectors / lengths.unsqueeze(1), torch.ones_like(lengths).unsqueeze(1)), lengths
        unit = vectors / (lengths + CLOSE * torch.exp(-lengths / CLOSE)).unsqueeze(1)
        envelope = groups.presence[g] * cosine_cutoff(lengths, self.cutoffs[1])
        return Links(i, g, unit, envelope.unsqueeze(1)), lengths
