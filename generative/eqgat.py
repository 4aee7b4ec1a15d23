"""EQGAT-diff's denoiser: attention over all pairs of atoms with scalars, vectors, coordinates and bond features.

Source: Le et al., "Navigating the design space of equivariant diffusion-based generative models for de novo 3D
molecule generation", ICLR 2024, arXiv 2309.17296. Only reflection-even quantities occur: the network is equivariant
to rotations and reflections, and cannot tell enantiomers apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..training.config import ConfigError, option
from .layout import Layout
from .pocket import JointGraph

Graph = Layout | JointGraph

SHORTEST = 1e-6  # Å², least squared distance, norm and variance
SMALL_TIME = 1e-3


@dataclass(frozen=True)
class EqgatConfig:
    """Widths, depth and normalisation of the network."""

    scalars: int = option(256, "scalar channels of an atom")
    vectors: int = option(64, "vector channels of an atom")
    edges: int = option(32, "channels of an edge")
    layers: int = option(7, "rounds of messages")
    norm: Literal["published", "corrected"] = option(
        "published", "published: features are divided by their variance; corrected: by its root"
    )

    def __post_init__(self) -> None:
        for key in ("scalars", "vectors", "edges", "layers"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, got {getattr(self, key)}")


PRESETS = {
    "published": EqgatConfig(256, 256, 128, 12),
    "default": EqgatConfig(),
    "cpu": EqgatConfig(64, 16, 16, 5),
}


class Prediction(NamedTuple):
    """The clean molecule as the network sees it.

    positions: ``(N, 3)`` Å, without mean. atoms: logits ``(N, K)`` of each variable. bonds: ``(E/2, B)`` logits of
    `Layout.pairs`.
    """

    positions: Tensor
    atoms: tuple[Tensor, ...]
    bonds: Tensor


class Eqgat(nn.Module):
    """The network.

    Args:
        config: its size.
        atom_classes: number of classes of each variable of an atom.
        bond_classes: number of bond classes.
        further: number of further channels of atoms and of edges, beside those of the classes.
        context: number of properties that the prediction depends on.
        pocket_classes: number of classes of pocket atoms; 0 for molecules without pockets.
    """

    def __init__(
        self,
        config: EqgatConfig,
        atom_classes: Sequence[int],
        bond_classes: int,
        *,
        further: tuple[int, int] = (0, 0),
        context: int = 0,
        pocket_classes: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.atom_classes = config, tuple(atom_classes)
        S, V, D, channels = config.scalars, config.vectors, config.edges, sum(atom_classes)
        self.atoms_in = _linear(channels + further[0], S)
        self.time_to_atoms, self.atoms_mix = _linear(1, S), _linear(S, S)
        self.bonds_in = _linear(bond_classes + further[1], D)
        self.time_to_bonds, self.bonds_mix = _linear(1, D), _linear(D, D)
        if context:
            self.context_in, self.context_mix = _linear(context, S), _linear(S, S)
        if pocket_classes:
            self.pocket_in = _linear(pocket_classes, S, bias=False)
        self.layers = nn.ModuleList(
            Layer(config, first=k == 0, last=k == config.layers - 1) for k in range(config.layers)
        )
        self.shared = _linear(S, S)
        self.position_out = _linear(V, 1, bias=False)
        self.atoms_out = _linear(S, channels)
        self.edges_out = _linear(D, S)
        self.bond_hidden = _linear(S + 1, S)
        self.bonds_out = _linear(S, bond_classes)

    def forward(
        self,
        layout: Graph,
        *,
        atoms: Tensor,
        bonds: Tensor,
        positions: Tensor,
        time: Tensor,
        context: Tensor | None = None,
        pocket: Tensor | None = None,
    ) -> Prediction:
        """Predict the clean molecules.

        Args:
            layout: which atoms and edges belong to which molecule.
            atoms: ``(N, A)`` one-hot (or noisy) channels of all variables, then the further ones.
            bonds: ``(E, B)`` one-hot channels of the edges, then the further ones.
            positions: ``(N, 3)`` Å; a common shift of a molecule is without effect.
            time: ``(G,)`` t / T.
            context: ``(G, C)`` standardised properties, for a network with context.
            pocket: ``(N, P)`` one-hot channels of pocket atoms, zero for the others; theirs in `atoms` are zero.
        """
        time = time.to(atoms.dtype).clamp(min=SMALL_TIME).unsqueeze(-1)
        s = self.atoms_in(atoms) if pocket is None else self.atoms_in(atoms) + self.pocket_in(pocket)
        s = self.atoms_mix(s + _rows(self.time_to_atoms(time), layout.batch))
        e = self.bonds_mix(self.bonds_in(bonds) + _rows(self.time_to_bonds(time), layout.edge_batch))
        wish = None if context is None else self.context_mix(self.context_in(context))[layout.batch]
        p = layout.centred(positions)
        v = p.new_zeros(len(p), 3, self.config.vectors)
        for k, layer in enumerate(self.layers):
            if wish is not None and k in {0, 1, len(self.layers) - 1}:
                s = s + wish
            s, v, p, e = layer(layout, s, v, p, e)
        s = nn.functional.silu(self.shared(s))
        shift = self.position_out(v).squeeze(-1).to(p.dtype)
        p = layout.centred(p + _moved(layout, shift))
        return Prediction(p, self.atoms_out(s).split(self.atom_classes, dim=-1), self._bond_logits(layout, s, p, e))

    def _bond_logits(self, layout: Graph, s: Tensor, p: Tensor, e: Tensor) -> Tensor:
        """Logits of the pairs from the mean of both edges and the predicted squared distance."""
        there, back = layout.bonded
        j, i = layout.edge_index[:, there]
        e = 0.5 * (_rows(e, there) + _rows(e, back))
        squared = (_rows(p, i) - _rows(p, j)).square().sum(-1, keepdim=True)
        f = _rows(s, i) + _rows(s, j) + self.edges_out(e)
        hidden: Tensor = self.bond_hidden(torch.cat([f, squared.to(f.dtype)], -1))
        logits: Tensor = self.bonds_out(nn.functional.silu(hidden))
        return logits


class Layer(nn.Module):
    """Normalisation, messages between all pairs, update of each atom; the first layer gets no vectors."""

    def __init__(self, config: EqgatConfig, *, first: bool, last: bool) -> None:
        super().__init__()
        S, V, D = config.scalars, config.vectors, config.edges
        self.first = first
        self.norm = GraphNorm(S, root=config.norm == "corrected")
        self.edge_pre, self.edge_post = _linear(D, D), _linear(D, D)
        self.message_in = _linear(2 * S + D + 4, S)
        self.split = [S, V, *([] if first else [V]), D, 1]
        self.message_out = _linear(S, sum(self.split))
        self.values = _linear(S, S)
        if not first:
            self.vector_values = _linear(V, V, bias=False)
        self.step = nn.Parameter(torch.ones(1))
        self.update = GatedUpdate(S, V, last=last)

    def forward(
        self, layout: Graph, s: Tensor, v: Tensor, p: Tensor, e: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """s ``(N, S)``, v ``(N, 3, V)``, p ``(N, 3)``, e ``(E, D)`` after this layer."""
        j, i = layout.edge_index
        s, v = self.norm(layout, s, v)
        difference = _rows(p, i) - _rows(p, j)
        distance = difference.square().sum(-1, keepdim=True).clamp(min=SHORTEST).sqrt()
        direction = difference / (1 + distance)
        e = self.edge_pre(e)
        attention, *gates, edge, shift = self._messages(layout, s, p, e, distance).split(self.split, -1)

        neighbours = layout.degree.clamp(min=1).to(p.dtype)
        s_new = s + attend(layout, attention, self.values(s))
        dv = _sum(direction.unsqueeze(-1) * gates[0].unsqueeze(1), i, len(s))
        if not self.first:
            dv = dv + _sum(_rows(self.vector_values(v), j) * gates[1].unsqueeze(1), i, len(s))
        v = v + dv / neighbours.reshape(-1, 1, 1)
        dp = _moved(layout, _sum(shift * direction, i, len(s)) / neighbours.unsqueeze(-1))
        length = _sum(dp.norm(dim=-1, keepdim=True), layout.batch, layout.n_molecules)
        length = length / layout.n_movable.unsqueeze(-1).to(p.dtype)
        p = p + self.step * dp / (length + 1e-5)[layout.batch]
        e = self.edge_post(nn.functional.silu(e + edge))
        s, v = self.update(s_new, v)
        return s, v, p, e

    def _messages(self, layout: Graph, s: Tensor, p: Tensor, e: Tensor, distance: Tensor) -> Tensor:
        """MLP of [s_i, s_j, d, p_i·p_j, e, |p_i|, |p_j|] of every edge.

        The first linear map acts on the atoms' parts before they are spread over the edges: the same numbers, at
        the cost of atoms instead of edges.
        """
        j, i = layout.edge_index
        S, D = s.shape[1], e.shape[1]
        weight = self.message_in.weight
        lengths = p.norm(dim=-1, keepdim=True)
        geometry = torch.cat([distance, (_rows(p, i) * _rows(p, j)).sum(-1, keepdim=True)], -1)
        linear = nn.functional.linear
        ends = weight[:, 2 * S + 2 + D :]
        to_target = linear(torch.cat([s, lengths], -1), torch.cat([weight[:, :S], ends[:, :1]], 1))
        to_source = linear(torch.cat([s, lengths], -1), torch.cat([weight[:, S : 2 * S], ends[:, 1:]], 1))
        edges = linear(torch.cat([geometry, e], -1), weight[:, 2 * S : 2 * S + 2 + D], self.message_in.bias)
        hidden = edges.add_(_rows(to_target, i)).add_(_rows(to_source, j))
        message: Tensor = self.message_out(nn.functional.silu(hidden))
        return message


class GraphNorm(nn.Module):
    """s centred and divided by its variance over the molecule, v divided by its mean square.

    As published, without square roots; with `root`, by the standard deviation and the root mean square.
    """

    def __init__(self, channels: int, *, root: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.root = root

    def forward(self, layout: Graph, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both normalised, in float32 or better."""
        s = s.to(self.weight.dtype)
        s = s - _molecule_mean(layout, s.mean(-1, keepdim=True))[layout.batch]
        variance = _molecule_mean(layout, s.square().mean(-1, keepdim=True)).clamp(min=SHORTEST)
        square = _molecule_mean(layout, v.square().sum(1).mean(-1, keepdim=True)).clamp(min=SHORTEST)
        if self.root:
            variance, square = variance.sqrt(), square.sqrt()
        return s / variance[layout.batch] * self.weight + self.bias, v / square[layout.batch].unsqueeze(-1)


class GatedUpdate(nn.Module):
    """Scalars of an atom learn the squared norms of its vectors; its vectors are gated by its scalars."""

    def __init__(self, scalars: int, vectors: int, *, last: bool) -> None:
        super().__init__()
        self.channels = [vectors, vectors]
        self.sizes = [vectors, scalars]
        self.vectors_in = _linear(vectors, 2 * vectors, bias=False)
        width = scalars + vectors
        self.mlp = (
            _linear(width, width)
            if last
            else nn.Sequential(_linear(width, scalars), nn.SiLU(), _linear(scalars, width))
        )
        self.vectors_out = None if last else _linear(vectors, vectors, bias=False)

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        measured, values = self.vectors_in(v).split(self.channels, -1)
        squares = measured.square().sum(1).clamp(min=SHORTEST)
        gate, ds = self.mlp(torch.cat([s, squares], -1)).split(self.sizes, -1)
        dv = gate.unsqueeze(1) * values
        return s + ds, v + (dv if self.vectors_out is None else self.vectors_out(dv))


def attend(layout: Graph, logits: Tensor, values: Tensor) -> Tensor:
    """Σ_j softmax_j(logits_ij) values_j per channel: ``(N, C)`` from ``(E, C)`` and ``(N, C)``; 0 if there is no j."""
    j, i = layout.edge_index
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    with torch.no_grad():
        largest = torch.segment_reduce(logits.detach(), "max", lengths=layout.degree, axis=0, unsafe=True)
    weights = (logits - _rows(largest, i)).exp_()
    total = _sum(weights, i, len(values))
    return _sum(weights * _rows(values, j), i, len(values)) / total.clamp(min=0.5)  # at least 1 with neighbours


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]`; several times faster on CPUs, forward and backward."""
    return values.index_select(0, index)


def _sum(values: Tensor, index: Tensor, n: int) -> Tensor:
    return values.new_zeros(n, *values.shape[1:]).index_add_(0, index, values)


def _moved(layout: Graph, shift: Tensor) -> Tensor:
    """Shifts ``(N, 3)`` of atoms, zero where they are held."""
    return shift if layout.movable is None else shift * layout.movable.unsqueeze(-1)


def _molecule_mean(layout: Graph, x: Tensor) -> Tensor:
    return _sum(x, layout.batch, layout.n_molecules) / layout.n_atoms.unsqueeze(-1).to(x.dtype)


def _linear(n_in: int, n_out: int, bias: bool = True) -> nn.Linear:
    """A linear map with torch's Kaiming-uniform weights (a = √5) and zero bias."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
