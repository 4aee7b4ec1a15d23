"""Facet as published: spline radial weights, tensor-product messages, a small network on a spherical grid."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from math import e, log
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets.errors import UserError
from ..datasets.statistics import Statistics
from ..kernels.harmonics import spherical_harmonics
from ..kernels.plan import GraphPlan
from ..kernels.radial import bessel_frequencies, exp_envelope, sinc_basis
from ..kernels.sphere import SphereGrid, gauss_legendre_grid, soft_grid
from .base import Potential
from .blocks import (
    Channels,
    Convolution,
    DegreeLinear,
    GridMixer,
    Kept,
    LayerNorm,
    Neighbourhood,
    SpeciesConvolution,
    adapt,
)

MARGIN = 0.5  # Å that the trainable cutoff may grow beyond its first value


@dataclass(frozen=True)
class FacetConfig:
    """Hyper-parameters of `Facet`.

    Attributes:
        cutoff: Å, first value of the trainable cutoff.
        lmax: largest degree of edge harmonics and grid.
        hidden: channels per degree, one entry per layer before the scalar one.
        embedding: width of the species embedding.
        scalars: width of the last, scalar layer.
        n_radial: sinc functions with trainable frequencies.
        heads, mlp: heads and hidden width of the network on the grid.
        grid: "gauss-legendre" (10 x 19) or "soft" (18 x 17, the published code's).
        parity: "so3" as published, or "o3".
        radial_power: messages are divided by (mean neighbours)^radial_power.
    """

    cutoff: float = 5.0
    lmax: int = 3
    hidden: tuple[Channels, ...] = ((128, 32, 16, 8), (128, 32, 16, 8))
    embedding: int = 128
    scalars: int = 128
    n_radial: int = 8
    heads: int = 2
    mlp: int = 16
    grid: str = "gauss-legendre"
    parity: str = "so3"
    radial_power: float = 0.7

    def __post_init__(self) -> None:
        if self.cutoff <= 0 or self.lmax < 1 or not self.hidden:
            raise UserError(f"facet needs cutoff > 0, lmax >= 1 and at least one hidden layer, got {self}")
        if self.grid not in ("gauss-legendre", "soft"):
            raise UserError(f"grid must be 'gauss-legendre' or 'soft', got {self.grid!r}")
        if any(len(channels) != self.lmax + 1 for channels in self.hidden):
            raise UserError(f"every entry of hidden needs lmax + 1 = {self.lmax + 1} channel counts, got {self.hidden}")

    def sphere(self) -> SphereGrid:
        """The grid of the mixers; in o3 mode its angles are even in number, so that it is closed under inversion."""
        if self.grid == "soft":
            return soft_grid(self.lmax, 18, 18 if self.parity == "o3" else 17)
        return gauss_legendre_grid(self.lmax, 10, 20 if self.parity == "o3" else 19)


PRESETS = {
    "facet-small": FacetConfig(),
    "facet-s": FacetConfig(cutoff=6.0, lmax=2, hidden=((128, 64, 32), (128, 64, 32)), embedding=64, scalars=64),
}


class FacetLayer(nn.Module):
    """Convolution with a linear residual, mixer, layer norm (zero scale at first) and the padded input added.

    Args:
        config: the model's hyper-parameters.
        inputs, outputs: channels per degree; scalar outputs alone make the last layer, whose mixer is a plain network.
        first: the inputs are the features of the species.

    Source: Facet (arXiv 2509.08418), sheet 4.4 to 4.6.
    """

    def __init__(self, config: FacetConfig, inputs: Channels, outputs: Channels, *, first: bool):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        kind = SpeciesConvolution if first else Convolution
        self.convolution = kind(inputs, outputs, lmax=config.lmax, n_radial=config.n_radial, parity=config.parity)
        self.residual = DegreeLinear(inputs, outputs)
        self.mixer: nn.Module
        if len(outputs) > 1:
            self.mixer = GridMixer(
                outputs, outputs, max(outputs[1:]), config.sphere(), heads=config.heads, hidden=config.mlp
            )
        else:
            c = outputs[0]
            dense = [module for _ in range(3) for module in (nn.Linear(c, c, bias=False), nn.SiLU())]
            self.mixer = nn.Sequential(*dense)
        self.norm = LayerNorm(outputs)

    def forward(self, own: Tensor, near: Neighbourhood) -> Tensor:
        """Flat node features after the layer."""
        messages, residual = self.convolution(own, near), self.residual(own)
        x = messages + nn.functional.pad(residual, (0, messages.shape[1] - residual.shape[1]))
        x = self.norm(self.mixer(x))
        return x + adapt(own, self.inputs, self.outputs)


class Facet(Potential):
    """Facet with the published architecture, made size-extensive.

    Each atom's output is ``s+(a[Z]) s+(a0) eps + b[Z] + b0`` with s+(x) = softplus(x + ln(e - 1)); the total energy is
    their sum on top of the reference energies (the paper averages over atoms). The full radius graph is used, not
    the k nearest neighbours, whose energy jumps. In "so3" mode mirror images may differ in energy.

    Args:
        config: hyper-parameters.
        elements: atomic numbers.
        reference_energies: eV by atomic number.
        scale: eV, first size of the interaction energy per atom.
        mean_neighbors: average number of neighbours within the first cutoff; scaled by the cube of the trained one.

    Source: Facet (arXiv 2509.08418); departures listed above.
    """

    architecture = "facet"
    scale: Tensor
    mean_neighbors: Tensor

    def __init__(
        self,
        config: FacetConfig,
        elements: tuple[int, ...],
        reference_energies: dict[int, float],
        scale: float = 1.0,
        mean_neighbors: float = 20.0,
    ):
        super().__init__(elements, reference_energies)
        self.config, self.cutoff = config, config.cutoff + MARGIN
        n_species = len(self.elements)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("mean_neighbors", torch.tensor(max(float(mean_neighbors), 1.0)))
        self.r_max = nn.Parameter(torch.tensor(float(config.cutoff)))
        self._norm = Kept()
        self.frequencies = nn.Parameter(bessel_frequencies(config.n_radial, config.cutoff).float())
        self.embedding = nn.Parameter(torch.randn(n_species, config.embedding))
        widths: list[Channels] = [(config.embedding,), *config.hidden, (config.scalars,)]
        self.layers = nn.ModuleList(
            FacetLayer(config, inputs, outputs, first=k == 0) for k, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(config.scalars, 1, bias=False)
        self.species_scale = nn.Parameter(torch.zeros(n_species))
        self.species_shift = nn.Parameter(torch.zeros(n_species))
        self.global_scale = nn.Parameter(torch.zeros(()))
        self.global_shift = nn.Parameter(torch.zeros(()))

    @classmethod
    def from_config(cls, config: dict[str, Any], statistics: Statistics) -> Facet:
        """Build from plain hyper-parameters, ``{"preset": "facet-small", ...}`` or single ones.

        Raises:
            UserError: a preset or hyper-parameter that does not exist or makes no sense.
        """
        plain = dict(config)
        preset = plain.pop("preset", "facet-small")
        if preset not in PRESETS:
            raise UserError(f"no Facet preset {preset!r}; there are {sorted(PRESETS)}")
        known = {f.name for f in fields(FacetConfig)}
        if unknown := sorted(set(plain) - known):
            raise UserError(f"unknown model settings {unknown}; facet knows {sorted(known | {'preset'})}")
        if "hidden" in plain:
            plain["hidden"] = tuple(tuple(channels) for channels in plain["hidden"])
        return cls(
            replace(PRESETS[preset], **plain),
            tuple(statistics.elements),
            statistics.reference_energies,
            scale=statistics.force_rms,
            mean_neighbors=statistics.mean_neighbors,
        )

    def atomic_energies(self, species: Tensor, vectors: Tensor, plan: GraphPlan) -> Tensor:
        """Interaction energy of each atom ``(N,)`` eV."""
        # The list was built for `cutoff`; a trained radius beyond it would cut edges off abruptly.
        radius = self.r_max.clamp(max=self.cutoff)
        edges = self._edges(vectors, radius)
        norm = self._norm([self.r_max, self.mean_neighbors], partial(self._message_norm, radius))
        own = self.embedding[species]
        for layer in self.layers:
            own = layer(own, Neighbourhood(species, self.embedding, edges, plan, norm))
        output = self.head(own)[:, 0] * _positive(self.species_scale)[species] * _positive(self.global_scale)
        return (output + self.species_shift[species] + self.global_shift) * self.scale

    def _message_norm(self, radius: Tensor) -> Tensor:
        """Factor of the summed messages: the mean number of neighbours grows with the cube of the trained radius."""
        return (self.mean_neighbors * (radius / self.config.cutoff) ** 3) ** -self.config.radial_power

    def _edges(self, vectors: Tensor, radius: Tensor) -> Tensor:
        """Harmonics and radial functions of every edge ``(E, (lmax+1)^2 + n_radial)``."""
        r = vectors.square().sum(-1).sqrt()
        radial = sinc_basis(r, self.frequencies, radius) * exp_envelope(r, radius)[:, None]
        return torch.cat([spherical_harmonics(vectors, self.config.lmax), radial], dim=1)


def _positive(x: Tensor) -> Tensor:
    """softplus shifted so that 0 maps to 1."""
    return nn.functional.softplus(x + log(e - 1))
