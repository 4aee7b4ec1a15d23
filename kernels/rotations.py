"""Rotations of features: Wigner-D matrices straight from Cartesian rotation matrices, polynomial and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from .conventions import w3j


def wigner_d(rotation: Tensor, lmax: int) -> list[Tensor]:
    """Real Wigner-D matrices of degrees 0..lmax: ``Y_l(R v) = D_l Y_l(v)``.

    Degree by degree from the stretched coupling ``D_l = (2l+1) w3j(l-1,1,l)^T (D_{l-1} (x) R) w3j(l-1,1,l)``: no
    angles, no branch points. Improper rotations work too: the parity of degree l is (-1)^l.

    Args:
        rotation: ``(..., 3, 3)`` orthogonal matrices acting on column vectors (x, y, z).
        lmax: largest degree.

    Returns:
        Matrices ``(..., 2l+1, 2l+1)``.

    Raises:
        ValueError: rotation is not ``(..., 3, 3)``.
    """
    if rotation.shape[-2:] != (3, 3):
        raise ValueError(f"rotation must end in axes (3, 3), got shape {tuple(rotation.shape)}")
    matrices = [rotation.new_ones(*rotation.shape[:-2], 1, 1)]
    for l in range(1, lmax + 1):
        table = torch.from_numpy(w3j(l - 1, 1, l).copy()).to(rotation)
        raised = torch.einsum("abc,...ad,...be,def->...cf", table, matrices[-1], rotation, table)
        matrices.append((2 * l + 1) * raised)
    return matrices
