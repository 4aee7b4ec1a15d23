"""What the generated Triton kernels share: their source frame, and how they are launched."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ._generated import module

HEADER = ["import triton", "import triton.language as tl"]


def kernel(name: str, arguments: Iterable[str], constants: Iterable[str], body: Iterable[str]) -> Any:
    """A Triton kernel of generated lines."""
    names = ", ".join((*arguments, *(f"{c}: tl.constexpr" for c in constants)))
    lines = [*HEADER, "", "", "@triton.jit", f"def {name}({names}):", *(f"    {line}" for line in body)]
    return getattr(module("\n".join(lines) + "\n"), name)


def launch(function: Any, programs: int, arguments: tuple[Any, ...], *, num_warps: int, **constants: Any) -> None:
    """Run this many programs of a kernel on the device of its first argument; none for an empty grid."""
    if programs == 0:
        return
    first: Tensor = arguments[0]
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        function[(programs,)](*arguments, num_warps=num_warps, enable_fp_fusion=True, **constants)


def power_of_two(n: int) -> int:
    """Smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def plus(terms: list[str]) -> str:
    """Code of a sum; an empty one is zero."""
    return " + ".join(terms) if terms else "0.0"


def times(value: float, factor: str) -> str:
    """Code of a number times a factor. Literals take the dtype of what they multiply."""
    return factor if abs(value - 1.0) < 1e-14 else f"{value!r} * {factor}"
