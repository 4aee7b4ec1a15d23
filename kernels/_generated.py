"""Modules of generated source, kept in the user's cache folder, where compilers can read and cache them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def module(source: str) -> Any:
    """Import generated source; the module's name is a hash of it, so compilers find their stored machine code.

    Raises:
        ImportError: the cache folder (variable TESSERAL_CACHE, default ~/.cache/tesseral) cannot be read back.
    """
    root = Path(os.environ.get("TESSERAL_CACHE") or Path.home() / ".cache" / "tesseral") / "kernels"
    root.mkdir(parents=True, exist_ok=True)
    name = "kernel_" + hashlib.sha256(source.encode()).hexdigest()[:16]
    path = root / f"{name}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != source:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(source, encoding="utf-8")
        os.replace(temporary, path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import the generated kernel {path}")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
