"""Layers on steerable features ``(N, (L+1)^2, C)``: all degrees 0..L with the same number of channels."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from ...kernels.degrees import degree_dot, degree_gate, degree_squares
from ...kernels.irreps import irreps_norm
from ...kernels.linear import degree_linear
from .scalars import mlp

EPS = 1e-14
"""Added to squared lengths, whose roots then have finite derivatives at zero."""


class Linear(nn.Module):
    """One matrix per degree between channels, and a bias on the scalars.

    Weights are unit normal and scaled by 1/sqrt(fan-in) when used.

    Args:
        degrees: number of degrees, L + 1.
        inputs, outputs: channels.
        bias: whether there is one.
    """

    def __init__(self, degrees: int, inputs: int, outputs: int, *, bias: bool = True):
        super().__init__()
        self.inputs, self.outputs = (inputs,) * degrees, (outputs,) * degrees
        self.weight = nn.Parameter(torch.randn(degrees, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, degrees^2, inputs)`` to ``(N, degrees^2, outputs)``."""
        weights = self.weight.flatten() * (1 / sqrt(self.inputs[0]))
        y = degree_linear(x.flatten(1), weights, self.inputs, self.outputs)
        if self.bias is not None:
            y = y + nn.functional.pad(self.bias, (0, y.shape[1] - len(self.bias)))
        return y.unflatten(1, (x.shape[1], -1))


class Gate(nn.Module):
    """Norm gate: a network of the invariants makes new scalars and a factor for every channel of a higher degree.

    Factors start near 1.

    Args:
        degrees: number of degrees, L + 1.
        channels: channels C.

    Source: QHNet (arXiv 2306.04922), sheet 4.4.
    """

    def __init__(self, degrees: int, channels: int):
        super().__init__()
        self.degrees, width = degrees, degrees * channels
        self.network = mlp(width, width, width)
        last = self.network[2]
        assert isinstance(last, nn.Linear)
        nn.init.ones_(last.bias[channels:])

    def controls(self, x: Tensor) -> Tensor:
        """Outputs ``(N, L + 1, C)`` of the network: new scalars, then factors by degree."""
        return self.network(invariants(x).flatten(1)).unflatten(1, (self.degrees, -1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Gated features of the same shape."""
        return degree_gate(x, self.controls(x))


def invariants(x: Tensor) -> Tensor:
    """Scalars, and a smooth length of every channel of every higher degree: ``(N, L + 1, C)``.

    ``sqrt(|x|^2 + eps) - sqrt(eps)``: zero for zero features, with finite derivatives there.
    """
    squares = degree_squares(x)
    return torch.cat([squares[:, :1], (squares[:, 1:] + EPS).sqrt() - sqrt(EPS)], dim=1)


class Norm(nn.Module):
    """Equivariant layer norm: the scalars' own, and one factor for all higher degrees, each with the same say.

    Args:
        degrees: number of degrees, L + 1.
        channels: channels C.

    Source: SPHNet (arXiv 2502.01171), sheet 5.2, with weights on the channels that they belong to (sheet 7.4).
    """

    def __init__(self, degrees: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(degrees, channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised features of the same shape."""
        blocks = list(x.split([2 * l + 1 for l in range(len(self.weight))], dim=1))
        return torch.cat(irreps_norm(blocks, list(self.weight), bias=self.bias, balanced=True, eps=1e-5), dim=1)


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Mean over components of the products of degrees 1..L, channel by channel: ``(E, L, C)``."""
    sums = degree_dot(x, y)[:, 1:]
    components = torch.arange(3, 2 * sums.shape[1] + 2, 2, device=x.device, dtype=x.dtype)
    return sums / components.unsqueeze(1)
