"""Modules of fixed numbers: they follow the model to its device and always stay float64."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Float64Module(nn.Module):
    """A module without parameters whose buffers keep float64 when the model is cast.

    Casting a model to float32 and back would otherwise round its coupling tables and grids for good. Use a buffer
    as ``self.table.to(x.dtype)``.
    """

    def constant(self, name: str, value: Tensor) -> None:
        """Register a buffer that no checkpoint stores."""
        self.register_buffer(name, value.double(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float64Module:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device)
        return self
