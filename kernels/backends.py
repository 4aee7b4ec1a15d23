"""Which implementation of a kernel runs: automatic by device and dtype, visible (`explain`), and overridable.

Order of precedence: the context manager `use_backend`, the environment variable TESSERAL_BACKEND, the automatic
choice: the first backend of the operation that suits the tensor and is installed, plain torch if there is none.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("reference", "numba", "triton", "cupy")
# Backends of every operation besides the reference. Gaunt products are hundreds of multiply-adds with literal
# coefficients on register arrays: CUDA C can write them, Triton cannot.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "degree_linear": ("numba",),
    "degree_products": ("numba",),
    "field_products": ("numba",),
    "gaunt_product": ("numba", "cupy"),
    "grid_mlp": ("triton",),
    "message": ("numba", "triton"),
    "pair_product": ("numba",),
    "species_density": ("numba",),
    "spherical_harmonics": ("numba", "triton"),
    "weighted_message": ("numba",),
}
DEVICES = {"numba": "cpu", "triton": "cuda", "cupy": "cuda"}
DTYPES = {("grid_mlp", "triton"): ("float32",)}  # all others: float32 and float64
_PLACES = {"cpu": "the CPU", "cuda": "a GPU"}
VARIABLE = "TESSERAL_BACKEND"
_forced: ContextVar[str | None] = ContextVar("tesseral_backend", default=None)


def backends() -> list[str]:
    """Backends that can run on the devices of this machine, the plain torch one first."""
    return [name for name in NAMES if _reason_against(name) is None]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run kernels on one backend inside the block; operations that it lacks choose by themselves.

    Raises:
        ValueError: no such backend, or it cannot run here.
    """
    token = _forced.set(_checked(name))
    try:
        yield
    finally:
        _forced.reset(token)


def choose(x: Tensor, operation: str) -> str:
    """Backend for an operation on x.

    Raises:
        ValueError: the forced backend cannot run here, or not on x.
    """
    return _decide(x, operation)[0]


def kernels_for(topic: str, x: Tensor) -> Any:
    """Module of the compiled kernels of a topic for the device of x; operators call it, below the choice."""
    tool = "triton" if x.is_cuda or (interpreted() and forced() == "triton") else "numba"
    return import_module(f"._{tool}_{topic}", __package__)


def explain(operation: str, *tensors: Tensor) -> str:
    """One line: which backend runs an operation on these tensors, and why.

    Args:
        operation: a name in `OPERATIONS`.
        tensors: the arguments; the first one decides.

    Raises:
        ValueError: no such operation, no tensor, or the forced backend cannot run here.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"no kernel operation {operation!r}; there are: {', '.join(OPERATIONS)}")
    if not tensors:
        raise ValueError(f"explain({operation!r}) needs the tensors that the operation is given")
    name, why = _decide(tensors[0], operation)
    return f"{operation} on {_kind(tensors[0])}: {name} ({why})"


def self_check(operation: str, backend: str, found: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Compare a kernel's first result, on a small input, with the reference.

    Args:
        operation, backend: for the message.
        found, expected: the results.
        tolerance: of the largest error relative to the largest value; None means 1e-4 in float32, else 1e-10.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    if tolerance is None:
        tolerance = 1e-4 if str(found.dtype) == "torch.float32" else 1e-10
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < tolerance:  # a NaN fails too
        raise RuntimeError(
            f"self-check: {operation} on backend {backend} differs from the reference by a relative {error:.1e} "
            f"on {_kind(found)}. Results cannot be trusted here: set {VARIABLE}=reference, and please report this"
        )


def interpreted() -> bool:
    """True where Triton's kernels run in its interpreter: slow, on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _decide(x: Tensor, operation: str) -> tuple[str, str]:
    own = OPERATIONS[operation]
    wanted = forced()
    if wanted is not None:
        _checked(wanted)
        if wanted == "reference":
            return wanted, "asked for"
        if wanted in own:
            if not _suits(wanted, x, operation):
                raise ValueError(f"backend {wanted} {_takes(wanted, operation)}, not {_kind(x)}")
            return wanted, "asked for"
        _say_once(f"{operation} has no {wanted} version: its backend is chosen automatically")
    passed = []
    for name in own:
        if not _suits(name, x, operation):
            passed.append(f"{name} {_takes(name, operation)}")
        elif (missing := _reason_against(name)) is not None:
            _say_once(f"{missing}: kernels run on plain torch, slower on {_PLACES[DEVICES[name]]}")
            passed.append(missing)
        else:
            return name, f"automatic: {_takes(name, operation)}"
    return "reference", f"plain torch: {'; '.join(passed)}"


def forced() -> str | None:
    """Backend that `use_backend` or the environment asks for; None: the automatic choice."""
    return _forced.get() or os.environ.get(VARIABLE)


def _suits(name: str, x: Tensor, operation: str) -> bool:
    device = x.device.type
    at_home = device == DEVICES[name] or (name == "triton" and interpreted() and forced() == name)
    return at_home and _dtype(x) in _dtypes(name, operation)


def _dtypes(name: str, operation: str) -> tuple[str, ...]:
    return DTYPES.get((operation, name), ("float32", "float64"))


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _kind(x: Tensor) -> str:
    return f"{_dtype(x)} on {x.device}"


def _takes(name: str, operation: str) -> str:
    return f"takes {' and '.join(_dtypes(name, operation))} on {_PLACES[DEVICES[name]]}"


@cache
def _say_once(line: str) -> None:
    warnings.warn(line, stacklevel=2)


@cache
def _reason_against(name: str) -> str | None:
    """Why a backend cannot run on this machine; None if it can."""
    if name == "reference":
        return None
    if find_spec(name) is None:
        return f"{name} is not installed"
    if DEVICES[name] == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"{name} needs a CUDA device"
    return None


def _checked(name: str) -> str:
    able = [*backends(), "triton"] if interpreted() and find_spec("triton") else backends()
    if name not in able:
        raise ValueError(f"kernel backend {name!r} is not available here; available: {', '.join(able)}")
    return name
