"""QHNet as it is usually written: every layer from e3nn, one tensor per path and pair; the peer of our networks.

Takes its weights from ours, so that the results of both can be compared. Imports e3nn, which it alone needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from ...kernels.conventions import FROM_Z_POLAR, Path
from ...potentials.hamiltonian.convolution import Convolution, FirstConvolution
from ...potentials.hamiltonian.expansion import Expansion
from ...potentials.hamiltonian.layout import Blocks
from ...potentials.hamiltonian.molecules import Molecules
from ...potentials.hamiltonian.pair import PairInteraction, SelfInteraction
from ...potentials.hamiltonian.qhnet import QHNet
from ...potentials.hamiltonian.scalars import Weigher
from ...potentials.hamiltonian.steerable import Gate, Linear


def irreps(channels: int, lmax: int) -> o3.Irreps:
    """Features with all degrees; parity is not kept apart, as in QHNet's pair layers."""
    return o3.Irreps([(channels, (l, 1)) for l in range(lmax + 1)])


def tensor_product(inputs: Sequence[o3.Irreps], mode: str, paths: Sequence[Path], *, own: bool = False) -> Any:
    """Product with QHNet's normalisation: e3nn takes the root of what it is given as weights of paths."""
    instructions = [(p.l1, p.l2, p.l3, mode, True, sqrt((2 * p.l3 + 1) / len(paths))) for p in paths]
    return o3.TensorProduct(
        *inputs,
        instructions,
        irrep_normalization="component",
        shared_weights=own,
        internal_weights=own,
    )


class PeerLinear(nn.Module):
    """e3nn's linear map with the weights of ours."""

    def __init__(self, ours: Linear):
        super().__init__()
        lmax = len(ours.inputs) - 1
        self.map = o3.Linear(irreps(ours.inputs[0], lmax), irreps(ours.outputs[0], lmax), biases=ours.bias is not None)
        with torch.no_grad():
            self.map.weight.copy_(ours.weight.flatten())
            if ours.bias is not None:
                self.map.bias.copy_(ours.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mapped features."""
        return self.map(x)  # type: ignore[no-any-return]


class PeerGate(nn.Module):
    """Norm gate on flat features."""

    def __init__(self, ours: Gate, channels: int):
        super().__init__()
        self.channels, self.features = channels, irreps(channels, ours.degrees - 1)
        self.norm = o3.Norm(self.features)
        self.scale = o3.ElementwiseTensorProduct(self.features[1:], f"{channels * (ours.degrees - 1)}x0e")
        self.network = ours.network

    def forward(self, x: Tensor) -> Tensor:
        """Gated features."""
        c = self.channels
        controls = self.network(torch.cat([x[:, :c], self.norm(x)[:, c:]], dim=1))
        return torch.cat([controls[:, :c], self.scale(x[:, c:], controls[:, c:])], dim=1)


def inner_product(channels: int, lmax: int) -> Any:
    """Mean over components of the products of degrees 1 to lmax, channel by channel, as a tensor product."""
    features = irreps(channels, lmax)
    instructions = [(l, l, l - 1, "uuu", False, 1 / (2 * l + 1)) for l in range(1, lmax + 1)]
    outputs = o3.Irreps([(channels, (0, 1)) for _ in range(lmax)])
    return o3.TensorProduct(features, features, outputs, instructions, irrep_normalization="component")


def weights(ours: Weigher, inputs: Tensor) -> Tensor:
    """Fully connected network without biases, flat weights."""
    return ours.hidden(inputs) @ ours.outer().T


class PeerConvolution(nn.Module):
    """A convolution: weights, messages and their sum as separate tensors."""

    def __init__(self, ours: Convolution | FirstConvolution, channels: int):
        super().__init__()
        lmax, self.channels, self.ours = ours.lmax, channels, ours
        own = irreps(channels, 0 if isinstance(ours, FirstConvolution) else lmax)
        self.product = tensor_product(
            (own, o3.Irreps.spherical_harmonics(lmax, p=1), irreps(channels, lmax)), "uvu", ours.paths
        )
        self.outer = PeerLinear(ours.outer)
        if isinstance(ours, Convolution):
            self.scalars, self.inner = PeerLinear(ours.scalars), PeerLinear(ours.inner)
            self.gate, self.inner_product = PeerGate(ours.gate, channels), inner_product(channels, lmax)

    def forward(self, x: Tensor, ends: tuple[Tensor, Tensor], harmonics: Tensor, radial: Tensor) -> Tensor:
        """Features of atoms after the layer; ``ends``: sources and targets of the edges."""
        source, target = ends
        if isinstance(self.ours, FirstConvolution):
            u, invariants = x, torch.cat([x[target], x[source]], dim=1)
        else:
            s, c = self.scalars(x), self.channels
            products = self.inner_product(s[target], s[source])
            invariants = torch.cat([s[target][:, :c], s[source][:, :c], products], dim=1)
            u = self.inner(self.gate(x))
        given = weights(self.ours.radial, radial) * weights(self.ours.state, invariants)
        messages = self.product(u[source], harmonics, given)
        total = messages.new_zeros(len(x), messages.shape[1]).index_add(0, target, messages)
        if isinstance(self.ours, FirstConvolution):
            return self.outer(total)  # type: ignore[no-any-return]
        return x + self.outer(total + u)  # type: ignore[no-any-return]


class PeerSelf(nn.Module):
    """Features of diagonal blocks."""

    def __init__(self, ours: SelfInteraction, channels: int, lmax: int):
        super().__init__()
        features = irreps(channels, lmax)
        self.gates = nn.ModuleList(PeerGate(g, channels) for g in ours.gates)  # type: ignore[arg-type]
        self.inner = nn.ModuleList(PeerLinear(linear) for linear in ours.inner)  # type: ignore[arg-type]
        self.product = tensor_product((features, features, features), "uuu", ours.product.paths, own=True)
        with torch.no_grad():
            self.product.weight.copy_(ours.weights.flatten())
        self.gate, self.outer = PeerGate(ours.product.gate, channels), PeerLinear(ours.product.outer)

    def forward(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """Features of atoms."""
        left, right = (linear(gate(x)) for gate, linear in zip(self.gates, self.inner, strict=True))
        found: Tensor = self.outer(self.gate(self.product(left, right) + x))
        return found if previous is None else found + previous


class PeerPair(nn.Module):
    """Features of all ordered pairs."""

    def __init__(self, ours: PairInteraction, channels: int, lmax: int):
        super().__init__()
        features = irreps(channels, lmax)
        self.ours, self.channels = ours, channels
        self.scalars, self.inner = PeerLinear(ours.scalars), PeerLinear(ours.inner)
        self.gate, self.inner_product = PeerGate(ours.gate, channels), inner_product(channels, lmax)
        self.product = tensor_product((features, features, features), "uuu", ours.product.paths)
        self.after, self.outer = PeerGate(ours.product.gate, channels), PeerLinear(ours.product.outer)

    def forward(self, x: Tensor, ends: tuple[Tensor, Tensor], radial: Tensor, previous: Tensor | None) -> Tensor:
        """Features of pairs; ``ends``: atoms of rows and of columns."""
        row, column = ends
        s, y, c = self.scalars(x), self.inner(self.gate(x)), self.channels
        products = self.inner_product(s[row], s[column])
        invariants = torch.cat([s[row][:, :c], s[column][:, :c], products], dim=1)
        states = self.ours.state.last(self.ours.state.hidden(invariants))
        given = weights(self.ours.radial, radial) * states
        found: Tensor = self.outer(self.after(self.product(y[column], y[row], given)))
        return found if previous is None else found + previous


class PeerQHNet(nn.Module):
    """The whole network.

    Args:
        ours: a QHNet of this package in "so3" mode, whose weights are taken.
    """

    def __init__(self, ours: QHNet):
        super().__init__()
        c, lmax = ours.config.channels, ours.config.lmax
        self.ours, self.lmax = ours, lmax
        self.convolutions = nn.ModuleList(
            PeerConvolution(layer, c)  # type: ignore[arg-type]
            for layer in (ours.first, *ours.convolutions)
        )
        self.selfs = nn.ModuleList(PeerSelf(layer, c, lmax) for layer in ours.selfs)  # type: ignore[arg-type]
        self.pairs = nn.ModuleList(PeerPair(layer, c, lmax) for layer in ours.pairs)  # type: ignore[arg-type]
        self.heads = nn.ModuleList(PeerLinear(head.maps[0]) for head in ours.heads)  # type: ignore[union-attr, arg-type, index]

    def forward(self, molecules: Molecules) -> Blocks:
        """Blocks of the matrix."""
        ours = self.ours
        edges = molecules.edges(ours.config.cutoff)
        source, target = edges.plan.source, edges.plan.target
        harmonics = o3.spherical_harmonics(
            o3.Irreps.spherical_harmonics(self.lmax, p=1),
            edges.vectors[:, FROM_Z_POLAR],
            normalize=True,
            normalization="component",
        )
        radial = ours.radial(edges.lengths)
        i, j = molecules.pairs
        ends = torch.cat([i, j]), torch.cat([j, i])
        lengths = (molecules.positions[ends[0]] - molecules.positions[ends[1]]).norm(dim=1)
        pair_radial = ours.radial(lengths)
        embedded = ours.embedding(molecules.numbers)
        x, diagonal, pairs = embedded, None, None
        first = len(self.convolutions) - len(self.pairs)
        for k, layer in enumerate(self.convolutions):
            x = layer(x, (source, target), harmonics, radial)
            if k >= first:
                diagonal = self.selfs[k - first](x, diagonal)
                pairs = self.pairs[k - first](x, ends, pair_radial, pairs)
        types = torch.cat([embedded[ends[0]], embedded[ends[1]]], dim=1)
        atoms = expand(ours.expansion, self.heads[0](diagonal), *(n(embedded) for n in ours.diagonal_networks))
        both = expand(ours.expansion, self.heads[1](pairs), *(n(types) for n in ours.pair_networks))
        return Blocks(atoms + atoms.transpose(1, 2), both[: len(i)] + both[len(i) :].transpose(1, 2))


def expand(operator: Expansion, x: Tensor, given: Tensor, biases: Tensor) -> Tensor:
    """Blocks, coupling by coupling."""
    w = operator.channels
    out = x.new_zeros(len(x), operator.size, operator.size)
    offsets = _offsets(operator)
    start = first_bias = 0
    for i in operator.instructions:
        own = x[:, w * i.degree**2 : w * (i.degree + 1) ** 2].unflatten(1, (w, -1))
        matrix = given[:, start : start + w * i.count].unflatten(1, (i.n1, i.n2, w))
        start += w * i.count
        coefficients = torch.einsum("puvw,pwk->puvk", matrix, own)
        if i.degree == 0:
            coefficients += biases[:, first_bias : first_bias + i.count].unflatten(1, (i.n1, i.n2, 1))
            first_bias += i.count
        table = o3.wigner_3j(i.l1, i.l2, i.degree, dtype=x.dtype, device=x.device)
        block = torch.einsum("ijk,puvk->puivj", table, coefficients) * operator.scale
        rows = slice(offsets[i.l1], offsets[i.l1] + i.n1 * (2 * i.l1 + 1))
        columns = slice(offsets[i.l2], offsets[i.l2] + i.n2 * (2 * i.l2 + 1))
        out[:, rows, columns] += block.flatten(3, 4).flatten(1, 2)
    return out


def _offsets(operator: Expansion) -> list[int]:
    """First function of every degree in a block."""
    shells = {i.l1: i.n1 for i in operator.instructions}
    widths = [(2 * l + 1) * shells[l] for l in sorted(shells)]
    return [sum(widths[:l]) for l in range(len(widths))]
