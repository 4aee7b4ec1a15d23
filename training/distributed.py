"""Sums over the processes of a `torchrun` training; the identity where there is only one.

Gradients are summed in one flat message after the backward pass. Together with losses that divide by *global*
counts (masked means!) every step equals the step of one process on the whole batch, and weights that took no
part in a batch do no harm, which they would under DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def world_size() -> int:
    return torch.distributed.get_world_size() if is_distributed() else 1


def rank() -> int:
    return torch.distributed.get_rank() if is_distributed() else 0


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def summed(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, out of place; no gradient."""
    if world_size() == 1:
        return values.detach()
    total = values.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes; an absent gradient counts as zero."""
    if world_size() == 1:
        return
    weights = [p for p in parameters if p.requires_grad]
    for p in weights:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in weights if p.grad is not None]
    for dtype in sorted({g.dtype for g in gradients}, key=str):
        group = [g for g in gradients if g.dtype == dtype]
        flat = torch.cat([g.reshape(-1) for g in group])
        torch.distributed.all_reduce(flat)
        for gradient, piece in zip(group, flat.split([g.numel() for g in group]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def broadcast_parameters(module: nn.Module) -> None:
    """Give every process the weights and buffers of process 0."""
    if world_size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        torch.distributed.broadcast(tensor.detach(), src=0)


def gathered(values: Tensor) -> Tensor:
    """`values` of every process stacked along a new first axis `(world_size, *shape)`."""
    if world_size() == 1:
        return values[None]
    pieces = [torch.empty_like(values) for _ in range(world_size())]
    torch.distributed.all_gather(pieces, values.contiguous())
    return torch.stack(pieces)
