"""Building blocks of steerable message-passing potentials.

Features are flat: ``(N, sum of (2l+1) C_l)``, degree-major, m outer, channel inner. ``channels[l]`` is C_l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from ..kernels.conventions import coupling_paths
from ..kernels.coupling import Coupling
from ..kernels.fields import field_products
from ..kernels.irreps import Channels, irreps_norm, join, split
from ..kernels.linear import degree_linear
from ..kernels.message import message, species_density
from ..kernels.plan import GraphPlan
from ..kernels.sphere import SphereGrid, grid_mlp


class Kept:
    """A tensor made of weights: made in every call while they are trained, kept while they are frozen."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []
        self._key: list[tuple[int, int]] = []
        self._value: Tensor | None = None

    def __call__(self, weights: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """`make()`, which reads nothing but `weights`."""
        if any(w.requires_grad or w.is_inference() for w in weights) or torch.compiler.is_compiling():
            return make()
        key = [(w.data_ptr(), w._version) for w in weights]
        if self._value is None or key != self._key:
            # The aliases keep the storages alive: no other weights can come to lie at the same addresses.
            self._weights, self._key, self._value = [w.detach() for w in weights], key, make()
        return self._value

    def __deepcopy__(self, memo: dict[int, object]) -> Kept:
        return Kept()


class DegreeLinear(nn.Module):
    """One matrix per degree between channels, no bias; unit-normal weights scaled by 1/sqrt(fan-in) when used.

    Args:
        inputs: channels per degree of the input.
        outputs: channels per degree of the output; degrees that the input lacks give no output.
    """

    def __init__(self, inputs: Channels, outputs: Channels):
        super().__init__()
        n = min(len(inputs), len(outputs))
        self.inputs, self.outputs = inputs, outputs[:n]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(inputs[l], outputs[l])) for l in range(n))
        self._merged = Kept()

    def forward(self, x: Tensor) -> Tensor:
        """Map flat features."""
        return degree_linear(x, self._merged(list(self.weights), self._merge), self.inputs, self.outputs)

    def _merge(self) -> Tensor:
        return torch.cat([(w * (1.0 / sqrt(max(w.shape[0], 1)))).flatten() for w in self.weights])


@dataclass(frozen=True)
class Neighbourhood:
    """What every layer of one evaluation shares.

    Attributes:
        species: ``(N,)`` index of each node's species.
        table: ``(S, C)`` scalar features that a species starts with.
        edges: ``(E, (lmax+1)^2 + n_radial)`` harmonics and radial functions of every edge, side by side.
        plan: the graph.
        norm: factor of the summed messages.
    """

    species: Tensor
    table: Tensor
    edges: Tensor
    plan: GraphPlan
    norm: Tensor


class Convolution(nn.Module):
    """Messages: source features times edge harmonics, radial weights linear in the basis, sum over neighbours.

    ``m_i = sum_j w(r_ij) * (h_j (x) Y(r_ij))`` with one weight per path and channel, then one linear map per degree
    over the channels of all paths.

    Args:
        inputs: channels per degree of the sources.
        outputs: channels per degree of the messages after the linear map.
        lmax: largest degree of the harmonics.
        n_radial: number of radial functions.
        parity: "o3" or "so3", see `kernels.conventions.coupling_paths`.

    Source: Facet (arXiv 2509.08418), spline radial weights and convolution (sheet 4.3, 4.4).
    """

    def __init__(
        self,
        inputs: Channels,
        outputs: Channels,
        *,
        lmax: int,
        n_radial: int,
        parity: str,
    ):
        super().__init__()
        degrees = tuple(l for l, c in enumerate(outputs) if c)
        paths = coupling_paths(tuple(l for l, c in enumerate(inputs) if c), lmax, degrees, parity)
        self.coupling = Coupling(paths, inputs, lmax)
        self.radial = nn.Parameter(torch.empty(n_radial, self.coupling.n_weights))
        nn.init.xavier_normal_(self.radial)
        self.linear = DegreeLinear(self.coupling.outputs, outputs)
        self._merged = Kept()

    def forward(self, own: Tensor, near: Neighbourhood) -> Tensor:
        """Normalised messages of the flat features ``own``."""
        radial = self._merged([self.radial, near.norm], lambda: self.radial * near.norm)
        messages = message(own, near.edges, radial, near.plan, self.coupling)
        mapped: Tensor = self.linear(messages)
        return mapped


class SpeciesConvolution(Convolution):
    """The first layer's convolution: every source has the scalar features of its species.

    The sum over neighbours is taken per species and radial function, before channels exist: R instead of C numbers
    per neighbour and harmonic, for the same result.
    """

    def forward(self, own: Tensor, near: Neighbourhood) -> Tensor:
        """Normalised messages."""
        n_species, c = near.table.shape
        if n_species > c:
            return super().forward(own, near)
        n = self.coupling.n_harmonics
        density = species_density(near.edges, near.species, n_species, n, near.plan)
        weights = self._merged([self.radial, near.norm, near.table, *self.linear.weights], lambda: self._merge(near))
        inputs = (density.shape[2],) * len(self.linear.outputs)
        return degree_linear(density.flatten(1), weights, inputs, self.linear.outputs)

    def _merge(self, near: Neighbourhood) -> Tensor:
        """One map from densities to messages: species features, radial weights and the linear map multiplied."""
        c = near.table.shape[1]
        radial = (self.radial * near.norm).split(c, dim=1)
        matrices = [
            ((near.table.unsqueeze(1) * g) @ (w * (1.0 / sqrt(c)))).flatten()
            for g, w in zip(radial, self.linear.weights, strict=True)
        ]
        return torch.cat(matrices)


class GridMixer(nn.Module):
    """Facet's non-linearity: a small network at every point of the sphere, shared by all points and heads.

    Linear to the same number of channels in every degree, grid, network, back, and a linear map of the result
    together with the original scalars.

    Args:
        inputs: channels per degree.
        outputs: channels per degree of the result.
        channels: channels on the grid.
        grid: the grid.
        heads, hidden: channel groups that share the two-layer SiLU network, and its hidden width.

    Source: Facet (arXiv 2509.08418), S2 MLP mixer (sheet 4.5).
    """

    def __init__(
        self, inputs: Channels, outputs: Channels, channels: int, grid: SphereGrid, *, heads: int, hidden: int
    ):
        super().__init__()
        self.grid, self.heads, self.lmax_out = grid, heads, len(outputs) - 1
        self.up = DegreeLinear(inputs, (channels,) * len(inputs))
        self.down = DegreeLinear((inputs[0] + channels, *(channels,) * self.lmax_out), outputs)
        per_head = channels // heads
        self.inner = nn.Parameter(torch.randn(per_head, hidden) / sqrt(per_head))
        self.outer = nn.Parameter(torch.randn(hidden, per_head) / sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Map flat features of all degrees up to the grid's."""
        fields = self.up(x).unflatten(1, ((self.grid.lmax + 1) ** 2, -1))
        y = grid_mlp(fields, self.grid, (self.inner, self.outer), heads=self.heads, lmax=self.lmax_out)
        mapped: Tensor = self.down(torch.cat([x[:, : self.up.inputs[0]], y.flatten(1)], dim=1))
        return mapped


class ProductMixer(nn.Module):
    """Exactly equivariant non-linearity: products of fields on the sphere, gated by a network of the scalars.

    With fields u, v, w linear in the input: u v and u v w as Gaunt products, times per-channel gates from the
    scalars; then a linear map of the result together with the input fields.

    Args:
        inputs: channels per degree.
        outputs: channels per degree of the result.
        channels: channels of the fields.
        hidden: width of the gate network.

    Source: our own, after Gaunt tensor products (arXiv 2401.10216), many-body products.
    """

    def __init__(self, inputs: Channels, outputs: Channels, channels: int, *, hidden: int):
        super().__init__()
        self.channels, self.lmax, self.lmax_out = channels, len(inputs) - 1, len(outputs) - 1
        self.up = DegreeLinear(inputs, (3 * channels,) * len(inputs))
        self.gate = nn.Sequential(nn.Linear(inputs[0], hidden), nn.SiLU(), nn.Linear(hidden, 2 * channels))
        self.down = DegreeLinear((inputs[0] + 2 * channels, *(3 * channels,) * self.lmax_out), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map flat features of all degrees up to lmax."""
        scalars = x[:, : self.up.inputs[0]]
        fields = self.up(x).unflatten(1, ((self.lmax + 1) ** 2, -1))
        y = field_products(fields, self.lmax_out) * self.gate(scalars).unsqueeze(1)
        mixed = torch.cat([y[:, 0], scalars], dim=-1)
        if self.lmax_out:
            first = fields[:, 1 : y.shape[1], : self.channels]
            mixed = torch.cat([mixed, torch.cat([y[:, 1:], first], dim=-1).flatten(1)], dim=-1)
        mapped: Tensor = self.down(mixed)
        return mapped


class LayerNorm(nn.Module):
    """`kernels.irreps.irreps_norm` with a learned scale per channel that starts at 0.

    Args:
        channels: channels per degree.

    Source: Facet (arXiv 2509.08418), sheet 4.6.
    """

    def __init__(self, channels: Channels):
        super().__init__()
        self.channels = channels
        self.scales = nn.ParameterList(nn.Parameter(torch.zeros(c)) for c in channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise flat features."""
        return join(irreps_norm(split(x, self.channels), list(self.scales)))


def adapt(x: Tensor, inputs: Channels, outputs: Channels) -> Tensor:
    """Zero-pad or truncate the channels of every degree of flat features; missing degrees become zeros."""
    blocks, out = split(x, inputs), []
    for l, c in enumerate(outputs):
        have = blocks[l] if l < len(blocks) else x.new_zeros(x.shape[0], 2 * l + 1, 0)
        out.append(nn.functional.pad(have[..., :c], (0, max(c - have.shape[-1], 0))))
    return join(out)
