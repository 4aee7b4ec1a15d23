"""The point-wise network on the sphere in plain torch, and which sizes of it fit a GPU kernel."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {False: 64 * 64, True: 64 * 32}
"""Padded channels of a head times hidden width, of a gradient or not."""


def fits(shape: tuple[int, ...], *, gradient: bool) -> bool:
    """Whether a network of ``(C/heads, H)`` fits the registers and shared memory (sm_80, sm_90) of a kernel."""
    rows, columns = (max(16, 1 << (n - 1).bit_length()) for n in shape)
    return rows * columns <= LARGEST[gradient] and max(rows, columns) <= 64


def reference(x: Tensor, synthesis: Tensor, analysis: Tensor, parameters: list[Tensor], heads: int) -> Tensor:
    """The network in plain torch; the arguments of the operator."""
    split = (synthesis @ x).unflatten(-1, (heads, -1))
    for layer in range(2):
        split = split @ parameters[layer]
        split = torch.nn.functional.silu(split + parameters[2 + layer] if len(parameters) == 4 else split)
    return analysis @ split.flatten(-2)
