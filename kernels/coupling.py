"""Couplings of source features with edge harmonics: paths, coefficients, and where each reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt

import numpy as np
from torch import Tensor

from .conventions import Path, w3j


@dataclass(frozen=True)
class Term:
    """Where one path reads and writes. Offsets point at component m = 0, channel 0; a component is `stride` apart.

    Attributes:
        path: the degrees.
        channels: channels C_l1.
        x, x_stride: in the flat source features.
        z, z_stride: in the flat messages.
        w: first column of its weights.
        table: ``(2 l1 + 1, 2 l2 + 1, 2 l3 + 1)`` coefficients, sqrt(2 l3 + 1) w3j.
    """

    path: Path
    channels: int
    x: int
    x_stride: int
    z: int
    z_stride: int
    w: int
    table: np.ndarray


class Coupling:
    """Couplings of a message and the layout of its features.

    Features are flat, degree-major, m outer, channel inner. A message of degree l3 has the channels of all paths
    into l3, in the order of the paths. Coefficients are component normalised (e3nn's "component" and "element").

    Args:
        paths: couplings ``l1 x l2 -> l3``.
        channels: channels of each source degree.
        lmax: largest degree of the harmonics.

    Attributes:
        key: text from which `Coupling.from_key` makes the same object; names the coupling in operators.
        degrees: the degrees l3 that the paths reach, ascending.
        outputs: channels of each degree in `degrees`.
        n_weights: columns of the weights, sum over paths of C_l1.
    """

    def __init__(self, paths: tuple[Path, ...], channels: tuple[int, ...], lmax: int):
        self.paths, self.channels, self.lmax = paths, channels, lmax
        self.degrees = tuple(sorted({p.l3 for p in paths}))
        self.outputs = tuple(sum(channels[p.l1] for p in paths if p.l3 == l) for l in self.degrees)
        self.n_harmonics, self.n_weights = (lmax + 1) ** 2, sum(channels[p.l1] for p in paths)
        self.x_width = sum((2 * l + 1) * c for l, c in enumerate(channels))
        self.z_sizes = [(2 * l + 1) * c for l, c in zip(self.degrees, self.outputs, strict=True)]
        self.z_width = sum(self.z_sizes)
        written = " ".join(f"{p.l1},{p.l2},{p.l3}" for p in paths)
        self.key = f"{written}|{','.join(map(str, channels))}|{lmax}"

    @staticmethod
    @lru_cache(maxsize=256)
    def from_key(key: str) -> Coupling:
        """The coupling of a key."""
        paths, channels, lmax = key.split("|")
        degrees = [[int(l) for l in path.split(",")] for path in paths.split()]
        return Coupling(tuple(Path(*d) for d in degrees), tuple(map(int, channels.split(","))), int(lmax))

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The paths with their offsets and coefficients."""
        out, w, used = [], 0, dict.fromkeys(self.degrees, 0)
        for p in self.paths:
            c, k = self.channels[p.l1], self.degrees.index(p.l3)
            x = sum((2 * l + 1) * n for l, n in enumerate(self.channels[: p.l1]))
            z = sum(self.z_sizes[:k]) + used[p.l3]
            table = sqrt(2 * p.l3 + 1) * w3j(p.l1, p.l2, p.l3)
            out.append(Term(p, c, x, c, z, self.outputs[k], w, table))
            w, used[p.l3] = w + c, used[p.l3] + c
        return tuple(out)

    def split(self, z: Tensor) -> list[Tensor]:
        """Views ``(N, 2 l3 + 1, C)`` of flat messages, one per degree in `degrees`."""
        parts = z.split(self.z_sizes, dim=-1)
        return [b.unflatten(-1, (2 * l + 1, c)) for b, l, c in zip(parts, self.degrees, self.outputs, strict=True)]
