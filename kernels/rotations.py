"""Rotations of features: Wigner-D matrices by polynomial recursion, from matrices, quaternions, or edge directions."""

from __future__ import annotations

from collections.abc import Sequence

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
        n, m = 2 * l - 1, 2 * l + 1
        table = torch.from_numpy(w3j(l - 1, 1, l).copy()).to(rotation)
        # One index at a time: sum over a of D_ad T_abc, over b of R_be, over (d, e) of T_def.
        left = (matrices[-1].mT @ table.reshape(n, 3 * m)).unflatten(-1, (3, m))  # (d, b, c)
        both = rotation.mT.unsqueeze(-3) @ left  # (d, e, c)
        raised = both.flatten(-3, -2).mT @ table.reshape(3 * n, m)
        matrices.append(m * raised)
    return matrices


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` of quaternions ``(..., 4)``, (w, x, y, z), of any length but 0.

    Polynomial in q / |q|, the same for q and -q: smooth wherever q is not zero.

    Raises:
        ValueError: quaternion is not ``(..., 4)``.
    """
    if quaternion.shape[-1] != 4:
        raise ValueError(f"quaternions must end in an axis of 4, got shape {tuple(quaternion.shape)}")
    w, x, y, z = quaternion.unbind(-1)
    s = 2 / quaternion.square().sum(-1)
    rows = [
        *(1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)),
        *(s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x)),
        *(s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def wigner_d_quaternion(quaternion: Tensor, lmax: int) -> list[Tensor]:
    """`wigner_d` of the rotation of a quaternion ``(..., 4)``, (w, x, y, z): smooth and differentiable everywhere."""
    return wigner_d(quaternion_to_matrix(quaternion), lmax)


def edge_frames(vectors: Tensor) -> Tensor:
    """Rotations that turn each vector onto the polar axis +y.

    No continuous choice exists for all directions. Half of them (y >= 0) turn the shortest way to +y; the other half
    is first turned by pi about z. Both are smooth with bounded derivatives on their half, closed: nothing diverges at
    the poles. Where the halves meet, the frame jumps by a rotation about y. An operation that commutes with rotations
    about y, such as `so2.so2_convolution`, does not see the jump: its result, once turned back, is one smooth
    function of the vectors, and so are energies and forces made of it.

    Args:
        vectors: ``(E, 3)``, not zero.

    Returns:
        ``(E, 3, 3)`` with ``R v = |v| (0, 1, 0)``.

    Raises:
        ValueError: vectors is not ``(E, 3)``.
    """
    if vectors.ndim != 2 or vectors.shape[1] != 3:
        raise ValueError(f"vectors must be (edges, 3), got shape {tuple(vectors.shape)}")
    unit = vectors / vectors.square().sum(-1, keepdim=True).sqrt()
    flipped = unit.new_tensor([-1.0, -1.0, 1.0])  # rotation by pi about z
    turn = torch.where(unit[:, 1:2] >= 0, torch.ones_like(flipped), flipped)
    x, y, z = (unit * turn).unbind(-1)
    f = 1 / (1 + y)
    rows = [*(1 - f * x * x, -x, -f * x * z), *(x, y, z), *(-f * x * z, -z, 1 - f * z * z)]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3)) * turn.unsqueeze(-2)


def rotate(x: Tensor, matrices: Sequence[Tensor], *, inverse: bool = False) -> Tensor:
    """Features ``(N, (L+1)^2, C)`` turned by Wigner-D matrices ``(N, 2l+1, 2l+1)`` of degrees 0..L.

    Args:
        x: features.
        matrices: from `wigner_d`; further degrees are ignored.
        inverse: turn back.

    Raises:
        ValueError: x has degrees that the matrices lack.
    """
    blocks, row = [], 0
    for d in matrices:
        if row < x.shape[1]:
            block = x[:, row : row + d.shape[-1]]
            blocks.append((d.mT if inverse else d) @ block)
            row += d.shape[-1]
    if row != x.shape[1]:
        raise ValueError(f"matrices of degrees up to {len(matrices) - 1} do not fit features {tuple(x.shape)}")
    return torch.cat(blocks, dim=1)
