"""Radial functions, and networks that act on invariants alone."""

from __future__ import annotations

from functools import cache
from math import comb, exp, log, pi, sqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .gates import Choice

RADIAL_SIZE = 0.1
"""Root mean square of `Bernstein` functions at the distances of a molecule."""


class Bernstein(nn.Module):
    """Exponential Bernstein polynomials with a smooth cutoff.

    ``b_v(r) = binom(n-1, v) e^(-(n-1-v) a r) (1 - e^(-a r))^v f(r)``, f(r) = exp(-r^2 / ((rc - r)(rc + r))).

    Args:
        n: number of functions.
        cutoff: rc, Å.

    Source: QHNet (arXiv 2306.04922), sheet 4.1.
    """

    def __init__(self, n: int, cutoff: float):
        super().__init__()
        self.cutoff, self.n = cutoff, n
        self.binomials = [log(comb(n - 1, v)) for v in range(n)]
        self.rate = nn.Parameter(torch.tensor(log(exp(0.5) - 1)))  # a = softplus(rate) = 0.5 / Å

    def forward(self, r: Tensor) -> Tensor:
        """Functions ``(E, n)`` of distances ``(E,)`` Å, which must not be zero."""
        decay = -functional.softplus(self.rate) * r.unsqueeze(-1)
        v = torch.arange(self.n, device=r.device, dtype=r.dtype)
        powers = torch.tensor(self.binomials, device=r.device, dtype=r.dtype) + (self.n - 1 - v) * decay
        inside = (r < self.cutoff).unsqueeze(-1)
        square = (r / self.cutoff).square().clamp(max=1 - 1e-6).unsqueeze(-1)
        values = torch.exp(powers + v * torch.log(-torch.expm1(decay)) - square / (1 - square))
        return values * inside


class ExpNormal(nn.Module):
    """Exponential normal functions with trainable centres and widths: ``exp(-b_k (e^(-5 r / rc) - m_k)^2) C(r)``.

    Args:
        n: number of functions.
        cutoff: rc, Å.

    Source: SPHNet (arXiv 2502.01171), sheet 5.1.
    """

    def __init__(self, n: int, cutoff: float):
        super().__init__()
        self.cutoff = cutoff
        start = exp(-cutoff)
        self.means = nn.Parameter(torch.linspace(start, 1, n))
        self.widths = nn.Parameter(torch.full((n,), (2 / n * (1 - start)) ** -2))

    def forward(self, r: Tensor) -> Tensor:
        """Functions ``(E, n)`` of distances ``(E,)`` Å."""
        distance = torch.exp(-5 / self.cutoff * r).unsqueeze(-1) - self.means
        return torch.exp(-self.widths * distance.square()) * cosine_cutoff(r, self.cutoff).unsqueeze(-1)


def cosine_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """``(cos(pi r / cutoff) + 1) / 2``, 0 beyond the cutoff."""
    return 0.5 * (torch.cos((r / cutoff).clamp(max=1.0) * pi) + 1)


@cache
def _unit_softplus() -> float:
    """Factor that gives shifted softplus of a normal variable a second moment of 1."""
    x, w = np.polynomial.hermite_e.hermegauss(120)
    moment = (w * (np.logaddexp(0, x) - log(2)) ** 2).sum() / w.sum()
    return float(1 / sqrt(moment))


def shifted_softplus(x: Tensor) -> Tensor:
    """``ln((1 + e^x) / 2)``, scaled to a second moment of 1 for normal x."""
    return _unit_softplus() * (functional.softplus(x) - log(2))


class Weigher(nn.Module):
    """Two-layer network without biases that makes weights of tensor products, per path and channel.

    Weights are unit normal and scaled by 1/sqrt(fan-in) when used.

    Args:
        inputs, hidden: widths.
        paths, channels: what is made.
        size: usual size of the inputs, which first weights make up for; radial functions are small.

    Source: e3nn's fully connected networks, as in QHNet (arXiv 2306.04922), sheet 4.4.
    """

    def __init__(self, inputs: int, hidden: int, paths: int, channels: int, *, size: float = 1.0):
        super().__init__()
        self.first = nn.Parameter(torch.randn(inputs, hidden) / size)
        self.last = nn.Parameter(torch.randn(paths, channels, hidden))

    def hidden(self, x: Tensor) -> Tensor:
        """Hidden layer ``(E, hidden)``."""
        return shifted_softplus(x @ (self.first * (1 / sqrt(len(self.first)))))

    def outer(self, choice: Choice | None = None) -> Tensor:
        """Matrix ``(paths * channels, hidden)`` from the hidden layer to the weights, times the paths' coefficients.

        None: all paths, without coefficients.
        """
        scale = 1 / sqrt(self.last.shape[2])
        if choice is None:
            return (self.last * scale).flatten(0, 1)
        last = choice.rows(self.last)
        return (last * (choice.coefficients.to(last) * scale)[:, None, None]).flatten(0, 1)


class BiasedWeigher(nn.Module):
    """The same with biases and SiLU; weights start near 1, so that those of the distance alone act at first.

    Source: QHNet (arXiv 2306.04922), pair layer, sheet 4.5.
    """

    def __init__(self, inputs: int, hidden: int, paths: int, channels: int):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, paths * channels)
        self.shape = (paths, channels)
        nn.init.ones_(self.last.bias)

    def hidden(self, x: Tensor) -> Tensor:
        """Hidden layer ``(E, hidden)``."""
        return functional.silu(self.first(x))

    def outer(self, choice: Choice) -> tuple[Tensor, Tensor]:
        """Matrix ``(paths * channels, hidden)`` and bias from the hidden layer to the weights of the chosen paths."""
        if choice.indices is None:
            return self.last.weight, self.last.bias
        weight, bias = (t.unflatten(0, self.shape) for t in (self.last.weight, self.last.bias))
        return choice.rows(weight).flatten(0, 1), choice.rows(bias).flatten()


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, SiLU, Linear, with biases."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class Idle(nn.Module):
    """Tensors that the released code makes and never uses, for its parameter counts.

    Args:
        shapes: shapes of the tensors.
    """

    def __init__(self, *shapes: tuple[int, ...]):
        super().__init__()
        self.tensors = nn.ParameterList(nn.Parameter(torch.zeros(shape), requires_grad=False) for shape in shapes)
