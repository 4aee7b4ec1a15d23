"""Which implementation of a kernel runs: automatic by device, visible, and overridable.

Order of precedence: the context manager `use_backend`, the environment variable TESSERAL_BACKEND, the automatic
choice (numba on the CPU, reference elsewhere).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("reference", "numba")
VARIABLE = "TESSERAL_BACKEND"
_forced: ContextVar[str | None] = ContextVar("tesseral_backend", default=None)


def backends() -> list[str]:
    """Backends that can run here, the plain torch one first."""
    return [name for name in NAMES if name == "reference" or find_spec(name) is not None]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run kernels on one backend inside the block.

    Raises:
        ValueError: no such backend, or its package is not installed.
    """
    token = _forced.set(_checked(name))
    try:
        yield
    finally:
        _forced.reset(token)


def choose(x: Tensor) -> str:
    """Backend for an operation on x.

    Raises:
        ValueError: the forced backend does not exist here.
    """
    wanted = _forced.get() or os.environ.get(VARIABLE)
    if wanted is not None:
        _checked(wanted)
        if wanted == "numba" and not _suits_numba(x):
            raise ValueError(
                f"backend numba takes float32 and float64 on the CPU, not {x.dtype} on {x.device}"
            )
        return wanted
    return "numba" if _suits_numba(x) and _numba_is_here() else "reference"


def _suits_numba(x: Tensor) -> bool:
    return x.device.type == "cpu" and str(x.dtype) in ("torch.float32", "torch.float64")


@cache
def _numba_is_here() -> bool:
    if "numba" in backends():
        return True
    warnings.warn("numba is not installed: kernels run on plain torch, slower on the CPU", stacklevel=3)
    return False


def _checked(name: str) -> str:
    if name not in backends():
        raise ValueError(f"kernel backend {name!r} is not available here; available: {', '.join(backends())}")
    return name
