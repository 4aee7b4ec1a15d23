"""The state of a training as data: nested values to tensors + JSON, generators, torch's global settings."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import distributed

TAG = "__tesseral__"
STATE_NAME = "last.state.safetensors"  # in the folder of a training


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split nested dicts, lists, tuples, tensors and plain values into JSON data and named tensors.

    Raises:
        TypeError: a value of any other type; it would need a pickle.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, "", tensors), tensors


def unflatten(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`flatten`; types, key types and values are restored exactly."""
    if isinstance(data, list):
        return [unflatten(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    if TAG not in data:
        return {key: unflatten(value, tensors) for key, value in data.items()}
    kind, value = data[TAG], data["value"]
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in value)
    if kind == "float":
        return float(value)
    return {unflatten(key, tensors): unflatten(item, tensors) for key, item in value}  # kind == "pairs"


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
    if isinstance(value, Tensor):
        tensors[path] = value
        return {TAG: "tensor", "value": path}
    if isinstance(value, tuple):
        return {TAG: "tuple", "value": [_encode(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key != TAG for key in value):
            return {key: _encode(v, f"{path}/{key}", tensors) for key, v in value.items()}
        pairs = [[_encode(k, "", tensors), _encode(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {TAG: "pairs", "value": pairs}
    raise TypeError(f"state {path!r} is a {type(value).__name__}: only tensors and plain data are saved")


def random_state() -> Tensor:
    """State of Python's, NumPy's and torch's generators of every process: ``(world_size, n)`` uint8."""
    _, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    python = random.getstate()
    parts = [
        torch.get_rng_state().numpy().tobytes(),
        np.asarray(words, dtype=np.uint32).tobytes(),
        np.array([position, has_gauss], dtype=np.int64).tobytes() + np.float64(gauss).tobytes(),
        np.array(python[1], dtype=np.int64).tobytes(),
        np.array([math.nan if python[2] is None else python[2]]).tobytes(),
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_rng_state().numpy().tobytes())
    state = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
    device = torch.device("cuda") if distributed.is_distributed() and torch.cuda.is_available() else "cpu"
    return distributed.gathered(state.to(device)).cpu()


def set_random_state(states: Tensor) -> None:
    """Restore :func:`random_state`; another number of processes than the saved one leaves generators alone."""
    if len(states) != distributed.world_size():
        return
    data = states[distributed.rank()].numpy().tobytes()

    def take(n_bytes: int) -> bytes:
        nonlocal data
        head, data = data[:n_bytes], data[n_bytes:]
        return head

    torch.set_rng_state(torch.frombuffer(bytearray(take(len(torch.get_rng_state()))), dtype=torch.uint8))
    words = np.frombuffer(take(624 * 4), dtype=np.uint32)
    position, has_gauss = np.frombuffer(take(16), dtype=np.int64).tolist()
    np.random.set_state(("MT19937", words, position, has_gauss, float(np.frombuffer(take(8))[0])))
    version, numbers, _ = random.getstate()
    python = tuple(np.frombuffer(take(8 * len(numbers)), dtype=np.int64).tolist())
    gauss = float(np.frombuffer(take(8))[0])
    random.setstate((version, python, None if math.isnan(gauss) else gauss))
    if data and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators; call it inside :func:`torch_settings`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def torch_settings(*, threads: int | None = None, precision: str = "float32") -> Iterator[None]:
    """Inside the block torch runs with these settings; afterwards all global state is as it was before.

    Kept: generators of torch (CPU and GPU), NumPy and Python, thread count, matrix-product precision,
    gradient mode, default dtype, deterministic and cuDNN switches.
    """
    kept_threads, kept_matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    kept_grad, kept_dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    kept_cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    kept_numpy, kept_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            yield
        finally:
            torch.set_num_threads(kept_threads)
            torch.set_float32_matmul_precision(kept_matmul)
            torch.set_grad_enabled(kept_grad)
            torch.set_default_dtype(kept_dtype)
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = kept_cudnn
            np.random.set_state(kept_numpy)
            random.setstate(kept_python)
