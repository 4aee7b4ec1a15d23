"""Noise schedules and loss weights as tables over the steps 0..T; index 0 still carries a little noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

OFFSET = 0.008  # keeps the first steps of the cosine from being noise-free
SMALLEST_RATIO = 0.05  # of successive levels
LARGEST_BETA = 0.999


def adaptive_cosine(steps: int, exponent: float = 1.0) -> Tensor:
    """Signal levels ā ``(steps + 1,)`` float64 of the cosine schedule with an exponent per variable.

    f(u) = cos²(π/2 (u^ν + s) / (1 + s)) at u = k / (T + 1), k = 0..T+1, successive ratios clipped;
    ā_t = Π_{i ≤ t} (1 − β_i), β_t = 1 − f_{t+1} / f_t. The larger ν, the later (in forward time) the noise comes.

    Source: Vignac et al., MiDi, arXiv 2302.09048.

    Raises:
        ValueError: fewer than one step or an exponent that is not positive.
    """
    if steps < 1 or exponent <= 0:
        raise ValueError(f"a schedule needs steps >= 1 and exponent > 0, got {steps} and {exponent}")
    u = torch.arange(steps + 2, dtype=torch.float64) / (steps + 1)
    f = torch.cos(0.5 * math.pi * (u**exponent + OFFSET) / (1 + OFFSET)) ** 2
    ratios = (f[1:] / f[:-1]).clamp(SMALLEST_RATIO, 1.0)
    return torch.cumprod(ratios.clamp(min=1 - LARGEST_BETA), 0)


def snr_weights(levels: Tensor, low: float = 0.05, high: float = 1.5) -> Tensor:
    """Loss weights clip(ā / (1 − ā), low, high) ``(T + 1,)`` from the levels of :func:`adaptive_cosine`.

    Source: Le et al., EQGAT-diff, arXiv 2309.17296.
    """
    return (levels / (1 - levels)).clamp(low, high)


def strided_times(steps: int, calls: int) -> list[int]:
    """Times T = t_0 > … > t_calls = 0 of a sampler with `calls` network calls, as evenly spaced as integers allow.

    Raises:
        ValueError: more calls than steps, or none.
    """
    if not 1 <= calls <= steps:
        raise ValueError(f"calls must lie in 1..{steps}, the steps of the schedule; got {calls}")
    return [round(steps * k / calls) for k in range(calls, -1, -1)]
