"""Layout of steerable features, and the layers that act on it degree by degree.

Features are flat, ``(N, sum of (2l+1) C_l)``, degree-major, m outer, channel inner, or a list of blocks
``(N, 2l+1, C_l)``, ascending degrees; ``channels[l]`` is C_l, which may be 0. Layers take and return blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import torch
from torch import Tensor

Channels = tuple[int, ...]


def width(channels: Channels) -> int:
    """Length of the flat feature axis."""
    return sum((2 * l + 1) * c for l, c in enumerate(channels))


def split(x: Tensor, channels: Channels) -> list[Tensor]:
    """Views ``(N, 2l+1, C_l)`` of flat features, one per degree.

    Raises:
        ValueError: the last axis is not `width` long.
    """
    if x.shape[-1] != width(channels):
        raise ValueError(f"features of channels {channels} are {width(channels)} wide, got {tuple(x.shape)}")
    sizes = [(2 * l + 1) * c for l, c in enumerate(channels)]
    parts = zip(x.split(sizes, -1), channels, strict=True)
    return [part.unflatten(-1, (2 * l + 1, c)) for l, (part, c) in enumerate(parts)]


def join(blocks: Sequence[Tensor]) -> Tensor:
    """Flat features of blocks ``(N, 2l+1, C_l)``."""
    return torch.cat([b.flatten(1) for b in blocks], dim=-1)


def irreps_linear(blocks: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None = None) -> list[Tensor]:
    """One matrix per degree between channels, scaled by 1/sqrt(fan-in).

    Args:
        blocks: ``(N, 2l+1, C_l)``; degrees beyond the weights are dropped.
        weights: ``(C_l, D_l)`` of unit variance, so that the result keeps the variance of the input.
        bias: ``(D_0,)`` added to the scalars, the only degree that may have one.

    Returns:
        Blocks ``(N, 2l+1, D_l)``.

    Raises:
        ValueError: more matrices than blocks, or a matrix that does not fit its block.
    """
    if len(weights) > len(blocks):
        raise ValueError(f"{len(weights)} matrices for {len(blocks)} degrees")
    for l, (b, w) in enumerate(zip(blocks, weights, strict=False)):
        if b.shape[-1] != w.shape[0]:
            raise ValueError(f"degree {l}: matrix {tuple(w.shape)} does not fit {b.shape[-1]} channels")
    out = [b @ (w * (1.0 / sqrt(max(w.shape[0], 1)))) for b, w in zip(blocks, weights, strict=False)]
    if bias is not None:
        out[0] = out[0] + bias
    return out


def invariants(blocks: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """Scalars, then a smooth length of every channel of every higher degree: ``(N, sum of C_l)``.

    ``sqrt(|x|^2 + eps) - sqrt(eps)``, divided by sqrt(2l+1): zero for zero features, with finite derivatives of every
    order there.

    Source: QHNet (arXiv 2306.04922), norm gate; the smoothing is ours.
    """
    lengths = [
        ((b.square().sum(1) + eps).sqrt() - sqrt(eps)) * (1.0 / sqrt(2 * l + 1))
        for l, b in enumerate(blocks[1:], start=1)
    ]
    return torch.cat([blocks[0][:, 0], *lengths], dim=-1)


def gate(
    blocks: Sequence[Tensor],
    controls: Tensor,
    *,
    scalars: Callable[[Tensor], Tensor] = torch.nn.functional.silu,
    gates: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> list[Tensor]:
    """Non-linearity that acts on invariants: new scalars, and one factor per channel of every higher degree.

    e3nn's gate: ``controls`` are scalar channels made for it. QHNet's norm gate: ``controls = mlp(invariants(x))``.

    Args:
        blocks: ``(N, 2l+1, C_l)``; those of degree 1 and more are scaled.
        controls: ``(N, D_0 + sum of C_l over l >= 1)`` invariants: what becomes the new scalars, then the factors.
        scalars: function of the first D_0 controls.
        gates: function of the others.

    Returns:
        Blocks, degree 0 with D_0 channels.

    Raises:
        ValueError: fewer controls than channels to be scaled.
    """
    sizes = [b.shape[-1] for b in blocks[1:]]
    first = controls.shape[-1] - sum(sizes)
    if first < 0:
        raise ValueError(f"{controls.shape[-1]} controls cannot scale {sum(sizes)} channels")
    new, *factors = controls.split([first, *sizes], dim=-1)
    scaled = [b * gates(f).unsqueeze(1) for b, f in zip(blocks[1:], factors, strict=True)]
    return [scalars(new).unsqueeze(1), *scaled]


def irreps_norm(
    blocks: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    balanced: bool = False,
    eps: float = 1e-6,
) -> list[Tensor]:
    """Equivariant layer norm.

    Scalars: subtract the mean over channels and divide by their rms. All higher degrees together: divide by one rms.

    Args:
        blocks: ``(N, 2l+1, C_l)``.
        scales: factor per channel ``(C_l,)`` of every degree.
        bias: ``(C_0,)`` added to the scalars.
        balanced: every degree has the same say in the rms, whatever its number of components and channels;
            otherwise every number has.
        eps: added to the mean squares.

    Returns:
        Blocks of the same shapes.

    Raises:
        ValueError: scales that do not fit the blocks.

    Source: Facet (arXiv 2509.08418), sheet 4.6; balanced: SPHNet (arXiv 2502.01171), sheet 5.2.
    """
    if [tuple(s.shape) for s in scales] != [(b.shape[-1],) for b in blocks]:
        raise ValueError(
            f"scales {[tuple(s.shape) for s in scales]} do not fit channels {[b.shape[-1] for b in blocks]}"
        )
    centred = blocks[0] - blocks[0].mean(-1, keepdim=True)
    out = [centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * scales[0]]
    if bias is not None:
        out[0] = out[0] + bias
    higher = [b for b in blocks[1:] if b.shape[-1]]
    if not higher:
        return out + list(blocks[1:])
    if balanced:
        power = torch.stack([b.square().mean((1, 2)) for b in higher]).mean(0)
    else:
        power = torch.stack([b.square().sum((1, 2)) for b in higher]).sum(0)
        power = power / sum(b.shape[1] * b.shape[2] for b in higher)
    factor = (power + eps).rsqrt()[:, None, None]
    return out + [b * factor * s for b, s in zip(blocks[1:], scales[1:], strict=True)]
