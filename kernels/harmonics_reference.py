"""Real spherical harmonics as polynomials in plain torch: no trigonometry, no poles."""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np
import torch
from torch import Tensor

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


def reference_harmonics(vectors: Tensor, lmax: int, *, normalize: bool = True) -> Tensor:
    """`spherical_harmonics`, component normalised; derivatives of any order come from autograd."""
    if normalize:
        vectors = vectors / vectors.square().sum(-1, keepdim=True).sqrt()
    harmonics = [torch.ones_like(vectors[..., :1])]
    for l in range(1, lmax + 1):
        pairs = (harmonics[-1].unsqueeze(-1) * vectors.unsqueeze(-2)).flatten(-2)
        harmonics.append(pairs @ torch.from_numpy(raise_degree(l)).to(vectors.device, vectors.dtype))
    return torch.cat(harmonics, dim=-1)
