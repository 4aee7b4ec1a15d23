"""Real spherical harmonics as polynomials: no trigonometry, no poles.

Reference implementation in torch; derivatives of any order come from autograd.
"""

from __future__ import annotations

from functools import cache
from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor

from .conventions import w3j


@cache
def _raise_degree(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix ``(3 (2l-1), 2l+1)`` from ``Y_{l-1} (x) v`` to ``Y_l``, component normalised for unit vectors v."""
    table = w3j(l - 1, 1, l)
    # The scale follows from the value at the pole y, where only m = 0 survives and equals sqrt(2l+1).
    below = np.zeros(2 * l - 1)
    below[l - 1] = sqrt(2 * l - 1)
    at_pole = np.einsum("abc,a,b->c", table, below, np.array([0.0, 1.0, 0.0]))[l]
    matrix = (table * (sqrt(2 * l + 1) / at_pole)).reshape(-1, 2 * l + 1)
    return torch.from_numpy(matrix).to(device, dtype)


def spherical_harmonics(
    vectors: Tensor, lmax: int, *, normalize: bool = True, normalization: str = "component"
) -> Tensor:
    """Real spherical harmonics of degrees 0..lmax.

    Degree by degree: the stretched coupling of ``Y_{l-1}`` with the vector is ``Y_l`` up to a factor.

    Args:
        vectors: ``(..., 3)``, any unit of length.
        lmax: largest degree.
        normalize: divide the vectors by their length first; otherwise the solid harmonics r^l Y_lm are returned.
        normalization: "component" (``|Y_l|^2 = 2l+1``) or "integral" (``|Y_l|^2 = (2l+1)/4pi``).

    Returns:
        ``(..., (lmax + 1)^2)``, index ``l*l + l + m``, e3nn's order and sign.

    Raises:
        ValueError: wrong last axis, or an unknown normalization.
    """
    if vectors.shape[-1] != 3:
        raise ValueError(f"vectors must end in an axis of 3, got shape {tuple(vectors.shape)}")
    if normalization not in ("component", "integral"):
        raise ValueError(f"normalization must be 'component' or 'integral', got {normalization!r}")
    if normalize:
        vectors = vectors / vectors.square().sum(-1, keepdim=True).sqrt()
    harmonics = [torch.ones_like(vectors[..., :1])]
    for l in range(1, lmax + 1):
        pairs = (harmonics[-1].unsqueeze(-1) * vectors.unsqueeze(-2)).flatten(-2)
        harmonics.append(pairs @ _raise_degree(l, vectors.dtype, vectors.device))
    stacked = torch.cat(harmonics, dim=-1)
    return stacked if normalization == "component" else stacked * (1 / sqrt(4 * pi))
