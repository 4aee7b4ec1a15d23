"""Exponential moving average of the weights; the averaged weights are those validated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """shadow ← d·shadow + (1 − d)·weight after every step, with d = min(decay, (1 + n)/(10 + n)) at step n.

    The warm-up of d keeps the initial weights from lingering in short trainings.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = [p for p in module.parameters() if p.requires_grad] if decay > 0 else []
        self.shadow = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        if not self.shadow:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.weights], 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the module holds the averaged weights, in the same memory."""
        if not self.shadow:
            yield
            return
        kept = [p.detach().clone() for p in self.weights]
        self._copy(self.shadow)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        torch._foreach_copy_([p.detach() for p in self.weights], values)

    def to(self, device: torch.device) -> None:
        """Move the averages to the weights' device."""
        self.shadow = [s.to(device) for s in self.shadow]

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "shadow": self.shadow}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.updates = int(state["updates"])
        for mine, stored in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(stored)
