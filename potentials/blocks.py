"""Building blocks of steerable message-passing potentials.

Features are flat: ``(N, sum of (2l+1) C_l)``, degree-major, m outer, channel inner. ``channels[l]`` is C_l.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from ..kernels.conventions import coupling_paths
from ..kernels.fields import field_products
from ..kernels.message import Coupling, GraphPlan, message, species_density
from ..kernels.sphere import SphereGrid, from_grid, to_grid

Channels = tuple[int, ...]


def width(channels: Channels) -> int:
    """Length of the flat feature axis."""
    return sum((2 * l + 1) * c for l, c in enumerate(channels))


def split(x: Tensor, channels: Channels) -> list[Tensor]:
    """Views ``(N, 2l+1, C_l)`` of flat features, one per degree."""
    sizes = [(2 * l + 1) * c for l, c in enumerate(channels)]
    return [
        b.unflatten(-1, (2 * l + 1, c))
        for l, (b, c) in enumerate(zip(x.split(sizes, -1), channels, strict=True))
    ]


def join(blocks: list[Tensor]) -> Tensor:
    """Flat features of blocks ``(N, 2l+1, C_l)``."""
    return torch.cat([b.flatten(1) for b in blocks], dim=-1)


class DegreeLinear(nn.Module):
    """One matrix per degree between channels, no bias; unit-normal weights scaled by 1/sqrt(fan-in) when used.

    Args:
        inputs: channels per degree of the input.
        outputs: channels per degree of the output; degrees that the input lacks give no output.
    """

    def __init__(self, inputs: Channels, outputs: Channels):
        super().__init__()
        n = min(len(inputs), len(outputs))
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(inputs[l], outputs[l])) for l in range(n))

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        """Map blocks ``(N, 2l+1, C_l)``, ascending degrees."""
        return [b @ (w * (1.0 / sqrt(w.shape[0]))) for b, w in zip(blocks, self.weights, strict=False)]


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

    def forward(self, own: list[Tensor], near: Neighbourhood) -> list[Tensor]:
        """Normalised messages ``(N, 2l+1, C_l)`` of the features ``own``."""
        messages = message(join(own), near.edges, self.radial * near.norm, near.plan, self.coupling)
        blocks: list[Tensor] = self.linear(self.coupling.split(messages))
        return blocks


class SpeciesConvolution(Convolution):
    """The first layer's convolution: every source has the scalar features of its species.

    The sum over neighbours is taken per species and radial function, before channels exist: R instead of C numbers
    per neighbour and harmonic, for the same result.
    """

    def forward(self, own: list[Tensor], near: Neighbourhood) -> list[Tensor]:
        """Normalised messages ``(N, 2l+1, C_l)``."""
        n_species, c = near.table.shape
        if n_species > c:
            return super().forward(own, near)
        n = self.coupling.n_harmonics
        density = species_density(near.edges, near.species, n_species, n, near.plan)
        blocks = density.split([2 * path.l2 + 1 for path in self.coupling.paths], dim=1)
        radial = (self.radial * near.norm).split(c, dim=1)
        return [
            b @ torch.einsum("sc,rc,cd->srd", near.table, g, w * (1.0 / sqrt(c))).flatten(0, 1)
            for b, g, w in zip(blocks, radial, self.linear.weights, strict=True)
        ]


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

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        """Map blocks ``(N, 2l+1, C_l)`` of all degrees up to the grid's."""
        values = to_grid(torch.cat(self.up(blocks), dim=1), self.grid).unflatten(-1, (self.heads, -1))
        values = nn.functional.silu(nn.functional.silu(values @ self.inner) @ self.outer)
        y = from_grid(values.flatten(-2), self.grid, self.lmax_out)
        mixed = list(y.split([2 * l + 1 for l in range(self.lmax_out + 1)], dim=1))
        mixed[0] = torch.cat([blocks[0], mixed[0]], dim=-1)
        return self.down(mixed)


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

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        """Map blocks ``(N, 2l+1, C_l)`` of all degrees up to lmax."""
        ups = self.up(blocks)
        products = field_products(torch.cat(ups, dim=1), self.lmax_out)
        y = products * self.gate(blocks[0][:, 0]).unsqueeze(1)
        mixed = y.split([2 * l + 1 for l in range(self.lmax_out + 1)], dim=1)
        linear = [blocks[0], *(f[..., : self.channels] for f in ups[1 : self.lmax_out + 1])]
        return self.down([torch.cat(pair, dim=-1) for pair in zip(mixed, linear, strict=True)])


class LayerNorm(nn.Module):
    """Equivariant layer norm with a learned scale per channel that starts at 0.

    Scalars: subtract the mean over channels and divide by their rms; all higher degrees together: divide by one rms
    over channels and components.

    Args:
        channels: channels per degree.
        eps: added to the mean squares.

    Source: Facet (arXiv 2509.08418), sheet 4.6.
    """

    def __init__(self, channels: Channels, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.scales = nn.ParameterList(nn.Parameter(torch.zeros(c)) for c in channels)

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        """Normalise blocks ``(N, 2l+1, C_l)``."""
        scalars = blocks[0] - blocks[0].mean(-1, keepdim=True)
        out = [scalars * (scalars.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.scales[0]]
        if len(blocks) > 1:
            n = sum(b.shape[1] * b.shape[2] for b in blocks[1:])
            power = torch.stack([b.square().sum((1, 2)) for b in blocks[1:]]).sum(0) / n
            factor = (power + self.eps).rsqrt()[:, None, None]
            out += [b * factor * s for b, s in zip(blocks[1:], list(self.scales)[1:], strict=True)]
        return out


def adapt(blocks: list[Tensor], channels: Channels) -> list[Tensor]:
    """Zero-pad or truncate the channels of every degree; missing degrees become zeros."""
    out = []
    for l, c in enumerate(channels):
        if l >= len(blocks):
            out.append(blocks[0].new_zeros(blocks[0].shape[0], 2 * l + 1, c))
            continue
        have = blocks[l].shape[-1]
        out.append(blocks[l][..., :c] if have >= c else nn.functional.pad(blocks[l], (0, c - have)))
    return out
