"""Convolutions in the frame of each edge, where harmonics have one component and couplings are diagonal in m.

In the frame where an edge points along +y, ``Y_lm = sqrt(2l+1) delta_m0``. With m2 = 0 a coupling (l1, l2, l3) maps
component m to m (even sum of degrees) or to -m (odd sum), so a path costs 2 min(l1, l3) + 1 products instead of the
hundreds of its full table; turning the features there and back costs sum (2l+1)^2. Worth it from degree 4 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from .conventions import Path, w3j
from .rotations import edge_frames, rotate, wigner_d


def so2_convolution(
    x: Tensor,
    vectors: Tensor,
    weights: Tensor,
    paths: Sequence[Path],
    graph: tuple[Tensor, Tensor],
    lmax: int,
) -> Tensor:
    """Messages with one weight per edge, path and channel ('uvu'), evaluated in the frames of the edges.

    ``z_i[l3] = sum over edges j -> i, paths p: w[e, p] sqrt(2 l3 + 1) w3j(l1, l2, l3) x_j[l1] Y_l2(r_e)``, component
    normalised: equal to the same sum with full coupling tables. Smooth in the vectors, see `rotations.edge_frames`.

    Args:
        x: ``(N, (L1+1)^2, C)`` source features.
        vectors: ``(E, 3)``, not zero.
        weights: ``(E, P, C)``, path by path.
        paths: couplings (l1, l2, l3) of features, harmonics, and result.
        graph: sources ``(E,)`` and targets ``(E,)``.
        lmax: largest degree of the result.

    Returns:
        ``(N, (lmax+1)^2, C)``.

    Raises:
        ValueError: shapes that do not fit, or a path beyond the degrees of x and lmax.

    Source: eSCN (arXiv 2302.03655), proposition 3.1; written for per-path weights.
    """
    source, target = graph
    n, rows, channels = x.shape
    if weights.shape != (vectors.shape[0], len(paths), channels):
        raise ValueError(f"weights must be (edges, paths, channels), got {tuple(weights.shape)} for {len(paths)} paths")
    for p in paths:
        if (p.l1 + 1) ** 2 > rows or p.l3 > lmax or not abs(p.l1 - p.l2) <= p.l3 <= p.l1 + p.l2:
            raise ValueError(f"{p} does not fit x {tuple(x.shape)} and lmax = {lmax}")
    top = max(lmax, *(p.l1 for p in paths), 0) if paths else lmax
    matrices = wigner_d(edge_frames(vectors), top)
    used = (max((p.l1 for p in paths), default=0) + 1) ** 2
    turned = rotate(x[:, :used].index_select(0, source), matrices)
    messages = rotate(_couple_in_frame(turned, weights, paths, lmax), matrices, inverse=True)
    return x.new_zeros(n, (lmax + 1) ** 2, channels).index_add(0, target, messages)


def _couple_in_frame(x: Tensor, weights: Tensor, paths: Sequence[Path], lmax: int) -> Tensor:
    """Sum of the paths between features in edge frames: ``(E, (L1+1)^2, C)`` to ``(E, (lmax+1)^2, C)``."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for k, p in enumerate(paths):
        groups.setdefault((p.l1, p.l3, (p.l1 + p.l2 + p.l3) % 2), []).append(k)
    # Splits, not slices: their backward is one concatenation instead of a sum of zero-padded tensors.
    order = [k for ks in groups.values() for k in ks]
    by_group = weights[:, order].split([len(ks) for ks in groups.values()], dim=1)
    features = x.split(list(range(1, 2 * int(sqrt(x.shape[1])), 2)), dim=1)
    blocks = [[x.new_zeros(x.shape[0], 2 * l + 1, x.shape[2])] for l in range(lmax + 1)]
    for ((l1, l3, odd), ks), w in zip(groups.items(), by_group, strict=True):
        low = min(l1, l3)
        part = features[l1][:, l1 - low : l1 + low + 1]
        table = torch.stack([frame_coefficients(paths[k]) for k in ks], dim=1)
        part = (part.flip(1) if odd else part) * (table.to(x) @ w)
        blocks[l3].append(torch.nn.functional.pad(part, (0, 0, l3 - low, l3 - low)) if l3 > low else part)
    return torch.cat([sum(parts[1:], parts[0]) for parts in blocks], dim=1)


@cache
def frame_coefficients(p: Path) -> Tensor:
    """What couples x_m (even sum of degrees) or x_-m (odd) to z_m, m = -min(l1, l3)..min(l1, l3), for Y along +y."""
    table = sqrt((2 * p.l3 + 1) * (2 * p.l2 + 1)) * w3j(p.l1, p.l2, p.l3)[:, p.l2, :]
    low, sign = min(p.l1, p.l3), -1 if (p.l1 + p.l2 + p.l3) % 2 else 1
    m = np.arange(-low, low + 1)
    return torch.from_numpy(table[p.l1 + sign * m, p.l3 + m].copy())


def so2_linear(x: Tensor, weights: Sequence[Tensor], lmax: int) -> Tensor:
    """Linear map of features in edge frames that commutes with rotations about the edge; mixes degrees and channels.

    All degrees with components +-m, stacked: ``z_0 = W_0 x_0``, and for m > 0
    ``z_m = A x_m - B x_-m``, ``z_-m = B x_m + A x_-m``. A holds the couplings with even sums of
    degrees, B the odd ones.

    Args:
        x: ``(E, (L1+1)^2, C)`` features turned by `rotations.rotate` into the frames of `rotations.edge_frames`.
        weights: for m = 0 a matrix ``(n_0 C, k_0 D)``, then for m = 1, 2, ... ``(2, n_m C, k_m D)``, A and B, with
            n_m = L1 + 1 - m input and k_m = lmax + 1 - m output degrees, ascending. Orders m without weights give 0.
        lmax: largest degree of the result.

    Returns:
        ``(E, (lmax+1)^2, D)``, still in the frames.

    Raises:
        ValueError: no weights, more orders than degrees, or a matrix that does not fit.

    Source: eSCN (arXiv 2302.03655), section 3.2; EquiformerV2 (arXiv 2306.12059).
    """
    l1, channels = int(sqrt(x.shape[1])) - 1, x.shape[2]
    if not 1 <= len(weights) <= min(l1, lmax) + 1:
        raise ValueError(f"weights for {len(weights)} orders m, degrees allow 1 to {min(l1, lmax) + 1}")
    for m, w in enumerate(weights):
        ends = (
            w.shape[-2] == (l1 + 1 - m) * channels,
            w.shape[-1] % (lmax + 1 - m) == 0,
            w.ndim == 2 + (m > 0),
        )
        if not all(ends):
            raise ValueError(f"weights of order {m} do not fit: {tuple(w.shape)}")
    out_channels = weights[0].shape[-1] // (lmax + 1)
    out: list[Tensor | None] = [None] * (lmax + 1) ** 2

    def gather(m: int) -> Tensor:
        return x[:, [l * l + l + m for l in range(abs(m), l1 + 1)]].flatten(1)

    def place(m: int, values: Tensor) -> None:
        for k, part in enumerate(values.unflatten(1, (-1, out_channels)).unbind(1)):
            l = abs(m) + k
            out[l * l + l + m] = part

    place(0, gather(0) @ weights[0])
    for m, (even, odd) in enumerate(weights[1:], start=1):
        plus, minus = gather(m), gather(-m)
        place(m, plus @ even - minus @ odd)
        place(-m, plus @ odd + minus @ even)
    zero = x.new_zeros(x.shape[0], out_channels)
    return torch.stack([zero if part is None else part for part in out], dim=1)


def so2_weights(weights: Sequence[Tensor], paths: Sequence[Path], l1: int, lmax: int) -> list[Tensor]:
    """Weights of `so2_linear` equal to a full tensor product with harmonics of the edge ('uvw').

    Args:
        weights: one matrix ``(C, D)`` per path.
        paths: couplings (l1, l2, l3) of features, harmonics, and result.
        l1, lmax: largest degrees of features and result.

    Source: eSCN (arXiv 2302.03655), proposition 3.1.
    """
    c, d = weights[0].shape
    orders = min(l1, lmax) + 1
    full = [weights[0].new_zeros(2, l1 + 1 - m, c, lmax + 1 - m, d) for m in range(orders)]
    for w, p in zip(weights, paths, strict=True):
        odd, low = (p.l1 + p.l2 + p.l3) % 2, min(p.l1, p.l3)
        along = frame_coefficients(p)
        for m in range(low + 1):
            # z_-m takes + B x_m, and z_m takes - B x_-m: the coefficient at -m carries the sign of B.
            value = float(along[low - m] if odd else along[low + m])
            full[m][odd, p.l1 - m, :, p.l3 - m] += value * w
    matrices = [t.flatten(3, 4).flatten(1, 2) for t in full]
    return [matrices[0][0], *matrices[1:]]
