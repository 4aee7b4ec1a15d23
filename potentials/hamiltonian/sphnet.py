"""SPHNet: cheap invariants, two convolutions, and pair layers that leave out couplings and pairs by learned gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.errors import UserError
from ...kernels.radial import smooth_step
from . import gates
from .base import HamiltonianModel, evaluate_pairs, no_blocks
from .convolution import Convolution, FirstConvolution, Near
from .expansion import Expansion
from .layout import Blocks, OrbitalLayout
from .molecules import Molecules
from .pair import Head, PairInteraction, Pairs, SelfInteraction
from .scalars import RADIAL_SIZE, Bernstein, mlp
from .steerable import Norm
from .vectorial import Vectorial


@dataclass(frozen=True)
class SPHNetConfig:
    """Hyper-parameters of `SPHNet`.

    Attributes:
        channels: of every degree, and width of the first part.
        lmax: largest degree.
        bottleneck: channels of the expansion's input.
        heads: of the attention in the first part.
        near_layers, far_layers: layers of the first part between atoms, and from groups of atoms.
        near_cutoff, far_cutoff: their cutoffs, Å.
        near_radial: their radial functions.
        edge_cutoff, pair_cutoff: Å, of convolutions and of pairs; between two thirds of the latter and the latter,
            blocks of pairs fade out.
        n_radial: radial functions of convolutions and of pairs.
        edge_hidden, hidden: widths of the weight networks of convolutions, and of all others.
        sparsity: fraction of paths, and of pairs, that is left out in the end; 0: dense, no gates.
        pair_sparsity: the fraction of pairs, where it is another; 0: all pairs. Molecules of few atoms need them.
        epoch: T, optimiser steps of an epoch of the schedule: paths and pairs are random before 2 T, learned from
            then on, the paths fixed from 3 T on.
        random_pairs: pairs follow the schedule, too; in the released code they are learned from the start.
        parity: "so3" as published, or "o3": mirror images get mirror images of the matrix.
        published: the released form: k-means groups, blocks of pairs evaluated in the given order of the atoms, no
            envelope, vectors from zero, a smaller expansion, and the tensors that are never used. Its matrices
            depend on the order of the atoms and jump.
    """

    channels: int = 128
    lmax: int = 4
    bottleneck: int = 32
    heads: int = 8
    near_layers: int = 4
    far_layers: int = 4
    near_cutoff: float = 5.0
    far_cutoff: float = 9.0
    near_radial: int = 50
    edge_cutoff: float = 15.0
    pair_cutoff: float = 30.0
    n_radial: int = 16
    edge_hidden: int = 32
    hidden: int = 128
    sparsity: float = 0.7
    pair_sparsity: float | None = None
    epoch: int = 3270
    random_pairs: bool = True
    parity: str = "so3"
    published: bool = False

    @property
    def gated(self) -> tuple[float | None, float | None]:
        """Fractions of paths and of pairs that gates leave out; None: no gate."""
        pairs = self.sparsity if self.pair_sparsity is None else self.pair_sparsity
        return self.sparsity or None, (pairs or None) if self.sparsity else None

    def __post_init__(self) -> None:
        if self.parity not in ("so3", "o3"):
            raise UserError(f"parity must be 'so3' or 'o3', got {self.parity!r}")
        for share in (self.sparsity, self.pair_sparsity or 0.0):
            if not 0 <= share < 1:
                raise UserError(f"sparsity must be at least 0 and less than 1, got {share}")
        if self.lmax < 1 or self.near_layers < 1 or self.far_layers < 1 or self.channels % self.heads:
            raise UserError(
                f"sphnet needs lmax >= 1, layers of both kinds and channels that the heads divide, got {self}"
            )


PRESETS = {
    "small": SPHNetConfig(
        channels=32,
        bottleneck=24,
        near_layers=2,
        far_layers=1,
        near_radial=24,
        hidden=64,
        pair_sparsity=0.0,
        epoch=1000,
        parity="o3",
    ),
    "svp": SPHNetConfig(),
    "tzvp": SPHNetConfig(lmax=6),
    "reference-svp": SPHNetConfig(published=True),
    "reference-tzvp": SPHNetConfig(lmax=6, published=True),
}


class SPHNet(HamiltonianModel):
    """Sparse Hamiltonian network.

    Args:
        config: hyper-parameters.
        layout: orbitals.
        target: "delta" (published) or "full".

    Source: SPHNet (arXiv 2502.01171), sheet section 5.
    """

    architecture = "sphnet"
    Config = SPHNetConfig

    def __init__(self, config: SPHNetConfig, layout: OrbitalLayout, target: str = "delta"):
        super().__init__(config, layout, target)
        c, lmax = config.channels, config.lmax
        sparsity, pair_sparsity = config.gated
        self.start = Vectorial(
            c,
            config.heads,
            config.near_radial,
            (config.near_cutoff, config.far_cutoff),
            (config.near_layers, config.far_layers),
            published=config.published,
        )
        self.radial = Bernstein(config.n_radial, config.edge_cutoff)
        self.pair_radial = Bernstein(config.n_radial, config.pair_cutoff)
        weights: dict[str, Any] = {
            "n_radial": config.n_radial,
            "hidden": config.edge_hidden,
            "radial_size": RADIAL_SIZE,
        }
        self.first = FirstConvolution(c, lmax, idle=config.published, **weights)
        self.second = Convolution(c, lmax, sparsity=pair_sparsity, **weights)
        self.norms = nn.ModuleList(Norm(lmax + 1, c) for _ in range(2))
        shape: dict[str, Any] = {"parity": config.parity, "sparsity": sparsity, "idle": config.published}
        self.selfs = nn.ModuleList(SelfInteraction(c, lmax, **shape) for _ in range(2))
        shape |= {"n_radial": config.n_radial, "hidden": config.hidden, "symmetric": True}
        self.pairs = nn.ModuleList(PairInteraction(c, lmax, gated=k, **shape) for k in (None, pair_sparsity))
        self.heads = nn.ModuleList(Head(c, config.bottleneck, lmax, parity=config.parity) for _ in range(2))
        self.expansion = Expansion(layout, lmax, config.bottleneck, published=config.published)
        numbers = self.expansion.n_weights, self.expansion.n_biases
        self.diagonal_networks = nn.ModuleList(mlp(c, config.hidden, n) for n in numbers)
        self.pair_networks = nn.ModuleList(mlp(c, config.hidden, n) for n in numbers)
        self.start_step(0)

    @classmethod
    def presets(cls) -> Mapping[str, SPHNetConfig]:
        """Named hyper-parameters."""
        return PRESETS

    def start_step(self, step: int) -> None:
        """Choose paths and pairs for an optimiser step; ``step``: number of finished ones."""
        gates.start_step(self, step, self.config.epoch, random_pairs=self.config.random_pairs)

    def blocks(self, molecules: Molecules) -> Blocks:
        """See `HamiltonianModel.forward`."""
        config = self.config
        pairs = Pairs.of(molecules, "index" if config.published else "element")
        near = Near.of(molecules, config.edge_cutoff, config.lmax, self.radial)
        u = self.start(molecules)
        x = self.norms[0](self.first(u, near))
        features = (x, self.norms[1](self.second(x, near)))
        diagonal: list[Tensor] = []
        for layer, own in zip(self.selfs, features, strict=True):
            diagonal = layer(own, diagonal)
        atoms = self._expand(0, diagonal, u)
        return Blocks(0.5 * (atoms + atoms.transpose(1, 2)), self._lower(molecules, pairs, u, features))

    def _lower(self, molecules: Molecules, pairs: Pairs, u: Tensor, features: tuple[Tensor, Tensor]) -> Tensor:
        lower = [no_blocks(molecules, self.expansion)]
        for part, found in evaluate_pairs(self.pairs, features, pairs, self.pair_radial(pairs.lengths)):
            invariants = u.index_select(0, part.ends[0]) + u.index_select(0, part.ends[1])
            blocks = part.mean(self._expand(1, found, invariants, part.pair))
            if not self.config.published:
                end = torch.tensor(self.config.pair_cutoff, dtype=blocks.dtype, device=blocks.device)
                blocks = blocks * (1 - smooth_step(part.lengths, end * (2 / 3), end))[:, None, None]
            lower.append(blocks)
        return torch.cat(lower)

    def _expand(self, which: int, features: list[Tensor], invariants: Tensor, rows: Tensor | None = None) -> Tensor:
        """Blocks of atoms (0) or pairs (1) with weights made from invariants, of which blocks take some rows."""
        made = [network(invariants) for network in (self.pair_networks if which else self.diagonal_networks)]
        if rows is not None and len(rows) != len(invariants):
            made = [t.index_select(0, rows) for t in made]
        return self.expansion(self.heads[which](features), *made)  # type: ignore[no-any-return]
