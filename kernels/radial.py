"""Radial bases and cutoff envelopes. All are smooth at r = 0, where sin(k r)/r has its limit k."""

from __future__ import annotations

from math import expm1, pi

import torch
from torch import Tensor


def sinc_basis(r: Tensor, frequencies: Tensor, cutoff: Tensor | float) -> Tensor:
    """Spherical Bessel functions of order 0: ``b_n(r) = (2/cutoff) sin(f_n r)/r``.

    Args:
        r: distances ``(...,)`` Å.
        frequencies: ``(n,)`` 1/Å; ``n pi / cutoff`` makes the functions vanish at the cutoff.
        cutoff: Å.

    Returns:
        ``(..., n)``.

    Source: Facet (arXiv 2509.08418), section on edge embedding; NequIP's Bessel basis.
    """
    return (2.0 / cutoff) * frequencies * torch.sinc(r.unsqueeze(-1) * (frequencies / pi))


def bessel_frequencies(n: int, cutoff: float) -> Tensor:
    """Frequencies ``k pi / cutoff``, k = 1..n, of functions that vanish at the cutoff (1/Å)."""
    return torch.arange(1, n + 1, dtype=torch.float64) * (pi / cutoff)


def polynomial_envelope(r: Tensor, cutoff: Tensor | float, power: int = 6) -> Tensor:
    """1 at r = 0, and 0 with its first two derivatives at the cutoff; 0 beyond.

    ``1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)`` with x = r / cutoff and p = power.

    Args:
        r: distances ``(...,)`` Å.
        cutoff: Å.
        power: p, larger values stay near 1 for longer.

    Source: DimeNet (arXiv 2003.03123), equation 8.
    """
    x = (r / cutoff).clamp(max=1.0)
    p = power
    return 1 - x**p * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * (p * (p + 1) / 2)))


def exp_envelope(r: Tensor, cutoff: Tensor | float, start: float = 0.8, sharpness: float = 0.1) -> Tensor:
    """Facet's ExpCutoff: 1 below ``start * cutoff``, 0 from the cutoff on, once differentiable at both ends.

    Args:
        r: distances ``(...,)`` Å.
        cutoff: Å, may be trainable.
        start: fraction of the cutoff where the decay begins.
        sharpness: exponent c of ``g(x) = expm1(c x)/expm1(c) x^2 sin(pi x / 2)``.

    Source: Facet (arXiv 2509.08418), sheet section 4.2.
    """
    t = ((r - start * cutoff) / ((1 - start) * cutoff)).clamp(0.0, 1.0)
    x = 2 * torch.minimum(t, 1 - t)
    g = torch.expm1(sharpness * x) * (1.0 / expm1(sharpness)) * x**2 * torch.sin(pi * x / 2)
    return torch.where(t < 0.5, 1 - 0.5 * g, 0.5 * g)


def smooth_step(r: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """0 below start, 1 above end, twice continuously differentiable: ``t^3 (10 - 15 t + 6 t^2)``.

    Args:
        r: distances ``(...,)`` Å.
        start, end: Å, broadcast against r.
    """
    t = ((r - start) / (end - start)).clamp(0.0, 1.0)
    return t**3 * (10 - t * (15 - 6 * t))
