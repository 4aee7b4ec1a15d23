"""Real spherical harmonics as polynomials: no trigonometry, no poles.

Plain torch, whose derivatives of any order come from autograd; directions of edges run on the fast kernels.
"""

from __future__ import annotations

from functools import cache
from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor

from .backends import choose
from .conventions import w3j


@cache
def raise_degree(l: int) -> np.ndarray:
    """Matrix ``(3 (2l-1), 2l+1)`` from ``Y_{l-1} (x) v`` to ``Y_l``, component normalised for unit vectors v."""
    table = w3j(l - 1, 1, l)
    # The scale follows from the value at the pole y, where only m = 0 survives and equals sqrt(2l+1).
    below = np.zeros(2 * l - 1)
    below[l - 1] = sqrt(2 * l - 1)
    at_pole = np.einsum("abc,a,b->c", table, below, np.array([0.0, 1.0, 0.0]))[l]
    return (table * (sqrt(2 * l + 1) / at_pole)).reshape(-1, 2 * l + 1)


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
    if normalize and vectors.ndim == 2 and lmax > 0 and choose(vectors, "spherical_harmonics") != "reference":
        from .harmonics_ops import harmonics_op

        harmonics: Tensor = harmonics_op(vectors, lmax)
    else:
        harmonics = reference_harmonics(vectors, lmax, normalize=normalize)
    return harmonics if normalization == "component" else harmonics * (1 / sqrt(4 * pi))


def reference_harmonics(vectors: Tensor, lmax: int, *, normalize: bool = True) -> Tensor:
    """`spherical_harmonics` in plain torch, component normalised."""
    if normalize:
        vectors = vectors / vectors.square().sum(-1, keepdim=True).sqrt()
    harmonics = [torch.ones_like(vectors[..., :1])]
    for l in range(1, lmax + 1):
        pairs = (harmonics[-1].unsqueeze(-1) * vectors.unsqueeze(-2)).flatten(-2)
        harmonics.append(pairs @ torch.from_numpy(raise_degree(l)).to(vectors.device, vectors.dtype))
    return torch.cat(harmonics, dim=-1)
