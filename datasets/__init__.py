"""The molecular data layer: structures, readers of every format, the store, neighbours, batches.

`read`, `split` and `write` share their names with their modules and are bound here at once; all else is
loaded on first use, so importing this room brings in numpy and no more.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .read import iread, open_source, read
from .split import split
from .structure import Structure
from .write import write

_LAZY = {
    "DataError": "errors",
    "UserError": "errors",
    "KeyMap": "keys",
    "Units": "units",
    "Source": "source",
    "Store": "store",
    "StoreWriter": "store",
    "write_store": "store",
    "Graph": "graph",
    "collate": "graph",
    "graph_from_structure": "graph",
    "neighbor_list": "neighbors",
    "SkinList": "neighbors",
    "Statistics": "statistics",
    "compute_statistics": "statistics",
    "GraphLoader": "loader",
}
__all__ = ["Structure", "iread", "open_source", "read", "split", "write"]
__all__ += list(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
