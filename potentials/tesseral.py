"""The house potential: Facet's idea with exact symmetry, exact isolated atoms and a twice smooth energy surface."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets.errors import UserError
from ..datasets.statistics import Statistics
from ..kernels.harmonics import spherical_harmonics
from ..kernels.plan import GraphPlan
from ..kernels.radial import bessel_frequencies, polynomial_envelope, sinc_basis
from ..kernels.sphere import gauss_legendre_grid
from .base import Potential
from .blocks import (
    Channels,
    Convolution,
    DegreeLinear,
    GridMixer,
    Neighbourhood,
    ProductMixer,
    SpeciesConvolution,
)
from .repulsion import ZBL


@dataclass(frozen=True)
class TesseralConfig:
    """Hyper-parameters of `Tesseral`.

    Attributes:
        cutoff: Å.
        lmax: largest degree of edge harmonics and of the fields that are mixed on the sphere.
        n_layers: message-passing layers.
        channels: channels per degree of the features that neighbours exchange after the first layer.
        field_channels: channels of the fields on the sphere.
        scalars: width of the species embedding and of the scalars that the last layer reads.
        n_radial: Bessel functions.
        mixer: "product" (Gaunt products, equivariant to rounding) or "silu" (Facet's network on a
            10 x 20 grid, equivariant up to aliasing).
        parity: "o3" (mirror-safe) or "so3".
        repulsion: add the ZBL repulsion at short range, and fade the learned part out below it.
    """

    cutoff: float = 5.0
    lmax: int = 3
    n_layers: int = 2
    channels: Channels = (64, 32)
    field_channels: int = 32
    scalars: int = 64
    n_radial: int = 8
    mixer: str = "product"
    parity: str = "o3"
    repulsion: bool = True

    def __post_init__(self) -> None:
        if self.cutoff <= 0 or self.lmax < 1 or self.n_layers < 1:
            raise UserError(f"tesseral needs cutoff > 0, lmax >= 1 and n_layers >= 1, got {self}")
        if len(self.channels) > self.lmax + 1:
            raise UserError(f"channels {self.channels} reach degree {len(self.channels) - 1}, above lmax = {self.lmax}")
        if self.mixer not in ("product", "silu"):
            raise UserError(f"mixer must be 'product' or 'silu', got {self.mixer!r}")


class Layer(nn.Module):
    """Messages plus a self term, mixed on the sphere.

    Args:
        config: the model's hyper-parameters.
        inputs: channels per degree of the node features.
        outputs: channels per degree of the result.
        first: the inputs are the features of the species.
    """

    def __init__(self, config: TesseralConfig, inputs: Channels, outputs: Channels, *, first: bool):
        super().__init__()
        field = (config.field_channels,) * (config.lmax + 1)
        field = (max(config.scalars, config.field_channels), *field[1:])
        kind = SpeciesConvolution if first else Convolution
        self.convolution = kind(inputs, field, lmax=config.lmax, n_radial=config.n_radial, parity=config.parity)
        self.self_term = DegreeLinear(inputs, field)
        self.mixer: nn.Module
        if config.mixer == "product":
            self.mixer = ProductMixer(field, outputs, config.field_channels, hidden=config.scalars)
        else:
            grid = gauss_legendre_grid(config.lmax, 10, 20)
            self.mixer = GridMixer(field, outputs, config.field_channels, grid, heads=1, hidden=config.field_channels)

    def forward(self, own: Tensor, near: Neighbourhood) -> Tensor:
        """Mix messages with the node's own flat features."""
        messages, own = self.convolution(own, near), self.self_term(own)
        missing = messages.shape[1] - own.shape[1]
        mixed: Tensor = self.mixer(messages + nn.functional.pad(own, (0, missing)))
        return mixed


class Tesseral(Potential):
    """Sum of species densities on the sphere, products of fields, one exchange between neighbours per layer.

    Differences from the published Facet: only even couplings, so mirror images have the same energy; a polynomial
    envelope with two vanishing derivatives and no layer norm, so the surface is twice smooth; the energy of each
    species without neighbours is subtracted, so an isolated atom has exactly its reference energy; ZBL repulsion.

    Args:
        config: hyper-parameters.
        elements: atomic numbers.
        reference_energies: eV by atomic number.
        scale: eV, size of the interaction energy per atom (the force rms of the data times 1 Å works well).
        mean_neighbors: average number of neighbours within the cutoff.

    Source: Facet (arXiv 2509.08418) for spline radial weights and mixing on the sphere.
    """

    architecture = "tesseral"
    scale: Tensor
    message_norm: Tensor
    frequencies: Tensor

    def __init__(
        self,
        config: TesseralConfig,
        elements: tuple[int, ...],
        reference_energies: dict[int, float],
        scale: float = 1.0,
        mean_neighbors: float = 20.0,
    ):
        super().__init__(elements, reference_energies)
        self.config, self.cutoff = config, config.cutoff
        n_species = len(self.elements)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("message_norm", torch.tensor(1.0 / sqrt(max(mean_neighbors, 1.0))))
        self.register_buffer("frequencies", bessel_frequencies(config.n_radial, config.cutoff).float())
        self.embedding = nn.Parameter(torch.randn(n_species, config.scalars))
        self.layers = nn.ModuleList()
        self.readouts = nn.ModuleList()
        inputs: Channels = (config.scalars,)
        self._widths: list[int] = []
        for k in range(config.n_layers):
            outputs = config.channels if k < config.n_layers - 1 else (config.scalars,)
            self.layers.append(Layer(config, inputs, outputs, first=k == 0))
            hidden = max(outputs[0] // 2, 8)
            readout = nn.Sequential(nn.Linear(outputs[0], hidden), nn.SiLU(), nn.Linear(hidden, 1, bias=False))
            self.readouts.append(readout)
            self._widths.append(outputs[0])
            inputs = outputs
        self.repulsion = ZBL(self.elements) if config.repulsion else None

    @classmethod
    def from_config(cls, config: dict[str, Any], statistics: Statistics) -> Tesseral:
        """Build from plain hyper-parameters; scale, neighbours and reference energies come from the statistics.

        Raises:
            UserError: a hyper-parameter that does not exist or makes no sense.
        """
        known = {f.name for f in fields(TesseralConfig)}
        if unknown := sorted(set(config) - known):
            raise UserError(f"unknown model settings {unknown}; tesseral knows {sorted(known)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        return cls(
            TesseralConfig(**plain),
            tuple(statistics.elements),
            statistics.reference_energies,
            scale=statistics.force_rms,
            mean_neighbors=statistics.mean_neighbors,
        )

    def atomic_energies(self, species: Tensor, vectors: Tensor, plan: GraphPlan) -> Tensor:
        """Interaction energy of each atom ``(N,)`` eV; exactly 0 without neighbours."""
        n_atoms, n_species = species.shape[0], len(self.elements)
        # One extra node per species, without neighbours: its energy is subtracted from every atom of that species.
        everyone = torch.cat([species, torch.arange(n_species, device=species.device)])
        extended = plan.with_isolated_nodes(n_species)
        lengths = vectors.square().sum(-1).sqrt()
        pairs = () if self.repulsion is None else self.repulsion.pairs(species, plan, lengths.dtype)
        edges = self._edges(vectors, lengths, pairs)
        own = self.embedding[everyone]
        energies = torch.zeros_like(own[:, 0])
        for layer, readout, width in zip(self.layers, self.readouts, self._widths, strict=True):
            own = layer(own, Neighbourhood(everyone, self.embedding, edges, extended, self.message_norm))
            energies = energies + readout(own[:, :width])[:, 0]
        interaction = (energies[:n_atoms] - energies[n_atoms:][species]) * self.scale
        # The difference is 0 up to rounding for an atom without neighbours; make it exact.
        interaction = torch.where(plan.has_neighbours, interaction, 0.0)
        if self.repulsion is not None:
            interaction = interaction + self.repulsion(pairs, lengths, plan)
        return interaction

    def _edges(self, vectors: Tensor, lengths: Tensor, pairs: tuple[Tensor, ...]) -> Tensor:
        """Harmonics and radial functions of every edge ``(E, (lmax+1)^2 + n_radial)``."""
        envelope = polynomial_envelope(lengths, self.cutoff)
        if self.repulsion is not None:
            envelope = envelope * self.repulsion.quiet(pairs, lengths)
        radial = sinc_basis(lengths, self.frequencies, self.cutoff) * envelope[:, None]
        return torch.cat([spherical_harmonics(vectors, self.config.lmax), radial], dim=1)
