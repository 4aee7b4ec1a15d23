"""Mathematics on spheres and graphs: harmonics, couplings, grids, radial functions, messages. Knows no atoms."""

from __future__ import annotations

from .backends import backends, explain, use_backend

__all__ = ["backends", "explain", "use_backend"]
