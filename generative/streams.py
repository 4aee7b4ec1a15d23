"""Random numbers by counter: each molecule has its own stream, whatever batch or device it is computed in.

A number is a hash (SplitMix64 finaliser, Steele et al., OOPSLA 2014) of seed, molecule, draw and position, so a
sampler gives the same molecule k for the same seed in a batch of 1 or of 1000, and draws cost one pass over memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = (
    c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # as signed 64-bit integers, whose products wrap as the unsigned ones do


class Streams:
    """One stream of random numbers per molecule of a batch.

    Args:
        seed: of the whole run.
        molecules: ``(G,)`` int64 running number of each molecule in the run; it names the stream.
    """

    def __init__(self, seed: int, molecules: Tensor) -> None:
        start = torch.full_like(molecules, _signed(seed))
        self.keys = _mix(_mix(start) ^ _mix(molecules))
        self.draws = 0

    def uniform(self, molecule: Tensor, counter: Tensor) -> Tensor:
        """Numbers in (0, 1), float64 of the shape of `counter`; each call is a new draw.

        Args:
            molecule: index into the batch, broadcastable to `counter`.
            counter: int64 position inside the molecule, unique within this draw and molecule.
        """
        self.draws += 1
        keys = _mix(self.keys + _signed(self.draws * _GOLDEN))
        bits = _mix(keys[molecule] + counter * _GOLDEN)
        return (_shifted(bits, 11).double() + 0.5) * 2.0**-53

    def normal(self, molecule: Tensor, counter: Tensor) -> Tensor:
        """Standard normal numbers, float64 (Box–Muller); arguments as in :meth:`uniform`."""
        radius = (-2 * self.uniform(molecule, counter).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(molecule, counter)).cos()


def choose(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Classes ``(…,)`` int64 drawn from `probabilities` ``(…, K)`` (any positive sum); `uniform` in (0, 1)."""
    steps = probabilities.double().cumsum(-1)
    chosen = (steps < (uniform * steps[..., -1]).unsqueeze(-1)).sum(-1)
    return chosen.clamp_(max=probabilities.shape[-1] - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
