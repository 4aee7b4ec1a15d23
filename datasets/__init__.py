"""The molecular data layer: structures, readers of every format, the store, neighbours, batches.

The names below are loaded on first use, so that `import tesseral.datasets` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "DataError": "errors",
    "UserError": "errors",
    "Structure": "structure",
    "KeyMap": "keys",
    "Units": "units",
    "read": "read",
    "iread": "read",
    "open_source": "read",
    "write": "write",
    "Source": "source",
    "Store": "store",
    "StoreWriter": "store",
    "write_store": "store",
    "split": "split",
    "Graph": "graph",
    "collate": "graph",
    "graph_from_structure": "graph",
    "neighbor_list": "neighbors",
    "SkinList": "neighbors",
    "Statistics": "statistics",
    "compute_statistics": "statistics",
    "GraphLoader": "loader",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
