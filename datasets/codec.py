"""JSON text for the `info` of a structure; plain values and arrays come back equal.

Beyond JSON: arrays, numpy numbers, complex numbers, bytes, tuples and dictionaries with keys that are no
strings travel in a tagged object. Text only, so that reading it never executes anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import DataError

TAG = "__tesseral__"
ARRAY_KINDS = "biufcU"


def encode(value: Any) -> str:
    """JSON text of a value; NaN and infinity are written as in Python's json.

    Raises:
        TypeError: a value of another type (`plain` turns those into text first).
    """
    return json.dumps(_tagged(value), separators=(",", ":"), ensure_ascii=False)


def decode(text: str | bytes, where: str = "") -> Any:
    """The value that `encode` wrote.

    Raises:
        DataError: the text is damaged.
    """
    try:
        return json.loads(text, object_hook=_untagged)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"damaged info record ({error})", where) from None


def plain(value: Any) -> Any:
    """The value with everything that `encode` does not know (objects of other packages) turned into text."""
    if isinstance(value, dict):
        return {k if isinstance(k, str | int | float | bool) else str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else list(map(plain, value))
    try:
        _tagged(value)
    except TypeError:
        return str(value)
    return value


def _tagged(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [_tagged(item) for item in value]
    if isinstance(value, dict) and TAG not in value and all(type(key) is str for key in value):
        return {key: _tagged(item) for key, item in value.items()}
    return _tagged_object(value)


def _tagged_object(value: Any) -> Any:
    if isinstance(value, dict):
        return {TAG: "dict", "items": [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {TAG: "tuple", "items": [_tagged(item) for item in value]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in ARRAY_KINDS:
        return _tagged_array(value)
    if isinstance(value, complex):
        return {TAG: "complex", "parts": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {TAG: "bytes", "base64": base64.b64encode(value).decode()}
    for kind in (bool, int, float, str):  # sub-classes (enumerations) become their base
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _tagged_array(value: np.ndarray | np.generic) -> dict[str, Any]:
    flat = np.ravel(value)
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)  # pairs of real numbers
    kind = "array" if isinstance(value, np.ndarray) else "scalar"
    return {TAG: kind, "dtype": value.dtype.str, "shape": list(value.shape), "data": flat.tolist()}


def _untagged(value: dict[str, Any]) -> Any:
    tag = value.get(TAG)
    if tag is None:
        return value
    if tag not in _READERS:
        raise ValueError(f"unknown tag {tag!r}")
    return _READERS[tag](value)


def _array(value: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(value["dtype"])
    if dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"dtype {dtype} is not allowed")
    real = np.zeros(0, dtype).real.dtype if dtype.kind == "c" else dtype
    return np.array(value["data"], dtype=real).view(dtype).reshape(value["shape"])


_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": lambda value: dict(value["items"]),
    "tuple": lambda value: tuple(value["items"]),
    "complex": lambda value: complex(*value["parts"]),
    "bytes": lambda value: base64.b64decode(value["base64"]),
    "array": _array,
    "scalar": lambda value: _array(value)[()],
}
