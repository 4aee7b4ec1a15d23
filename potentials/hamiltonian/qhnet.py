"""QHNet: five convolutions over atoms, products of atom features for pairs, expansion by element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.errors import UserError
from .base import HamiltonianModel, evaluate_pairs, no_blocks
from .convolution import Convolution, FirstConvolution, Near
from .expansion import Expansion
from .layout import Blocks, OrbitalLayout
from .molecules import Molecules
from .pair import Head, PairInteraction, Pairs, SelfInteraction
from .scalars import Bernstein, Idle, mlp


@dataclass(frozen=True)
class QHNetConfig:
    """Hyper-parameters of `QHNet`.

    Attributes:
        channels: of every degree.
        lmax: largest degree.
        bottleneck: channels of the expansion's input.
        layers: convolutions.
        pair_layers: of these, how many are followed by layers of pairs and of diagonal blocks; the last ones.
        cutoff: Å, of convolutions and of the radial functions of pairs.
        n_radial: radial functions.
        edge_hidden, hidden: widths of the weight networks of convolutions and of pairs.
        parity: "so3" as published, or "o3": mirror images get mirror images of the matrix.
        published: the scale of the released expansion, and the tensors that the released code makes and never uses.
    """

    channels: int = 128
    lmax: int = 4
    bottleneck: int = 32
    layers: int = 5
    pair_layers: int = 2
    cutoff: float = 15.0
    n_radial: int = 16
    edge_hidden: int = 32
    hidden: int = 128
    parity: str = "so3"
    published: bool = False

    def __post_init__(self) -> None:
        if self.parity not in ("so3", "o3"):
            raise UserError(f"parity must be 'so3' or 'o3', got {self.parity!r}")
        if self.lmax < 1 or not 1 <= self.pair_layers < self.layers:
            raise UserError(f"qhnet needs lmax >= 1 and fewer pair layers than layers, got {self}")


PRESETS = {
    "small": QHNetConfig(channels=32, bottleneck=24, layers=3, hidden=64, parity="o3"),
    "standard": QHNetConfig(),
    "reference": QHNetConfig(published=True),
}


class QHNet(HamiltonianModel):
    """The baseline of Hamiltonian networks.

    Args:
        config: hyper-parameters; "reference" has the released code's number of parameters.
        layout: orbitals.
        target: "delta" or "full" (published).

    Source: QHNet (arXiv 2306.04922), sheet section 4; both scalars of a pair enter the weights of convolutions.
    """

    architecture = "qhnet"
    Config = QHNetConfig

    def __init__(self, config: QHNetConfig, layout: OrbitalLayout, target: str = "delta"):
        super().__init__(config, layout, target)
        c, lmax = config.channels, config.lmax
        self.embedding = nn.Embedding(10 if max(layout.elements) < 10 else max(layout.elements) + 1, c)
        self.radial = Bernstein(config.n_radial, config.cutoff)
        weights: dict[str, Any] = {"n_radial": config.n_radial, "hidden": config.edge_hidden}
        self.first = FirstConvolution(c, lmax, idle=config.published, **weights)
        self.convolutions = nn.ModuleList(Convolution(c, lmax, **weights) for _ in range(config.layers - 1))
        shape: dict[str, Any] = {"parity": config.parity, "idle": config.published}
        self.selfs = nn.ModuleList(SelfInteraction(c, lmax, **shape) for _ in range(config.pair_layers))
        self.pairs = nn.ModuleList(
            PairInteraction(c, lmax, n_radial=config.n_radial, hidden=config.hidden, symmetric=False, **shape)
            for _ in range(config.pair_layers)
        )
        self.heads = nn.ModuleList(Head(c, config.bottleneck, lmax, parity=config.parity) for _ in range(2))
        self.expansion = Expansion(layout, lmax, config.bottleneck, published=config.published)
        numbers = self.expansion.n_weights, self.expansion.n_biases
        self.diagonal_networks = nn.ModuleList(mlp(c, config.hidden, n) for n in numbers)
        self.pair_networks = nn.ModuleList(mlp(2 * c, config.hidden, n) for n in numbers)
        if config.published:
            self.idle = Idle(*2 * [(n,) for n in numbers])

    @classmethod
    def presets(cls) -> Mapping[str, QHNetConfig]:
        """Named hyper-parameters."""
        return PRESETS

    def blocks(self, molecules: Molecules) -> Blocks:
        """See `HamiltonianModel.forward`."""
        pairs = Pairs.of(molecules, "both")
        pair_radial = self.radial(pairs.lengths)
        near = Near.of(molecules, self.config.cutoff, self.config.lmax, self.radial)
        embedded = self.embedding(molecules.numbers)
        x = self.first(embedded, near)
        features = []
        for layer in self.convolutions:
            x = layer(x, near)
            features.append(x)
        features = features[-len(self.pairs) :]
        diagonal: list[Tensor] = []
        for layer, own in zip(self.selfs, features, strict=True):
            diagonal = layer(own, diagonal)
        atoms = self._expand(0, diagonal, embedded)
        lower = [no_blocks(molecules, self.expansion)]
        for part, found in evaluate_pairs(self.pairs, features, pairs, pair_radial):
            types = torch.cat([embedded[part.rows], embedded[part.columns]], dim=1)
            lower.append(2 * part.mean(self._expand(1, found, types)))
        return Blocks(atoms + atoms.transpose(1, 2), torch.cat(lower))

    def _expand(self, which: int, features: list[Tensor], types: Tensor) -> Tensor:
        """Blocks of atoms (0) or pairs (1) with weights made from the elements."""
        made = [network(types) for network in (self.pair_networks if which else self.diagonal_networks)]
        return self.expansion(self.heads[which](features), *made)  # type: ignore[no-any-return]
