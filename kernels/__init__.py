"""Mathematics on spheres and graphs: harmonics, couplings, grids, radial functions, messages. Knows no atoms."""

from __future__ import annotations

from .backends import backends, use_backend

__all__ = ["backends", "use_backend"]
