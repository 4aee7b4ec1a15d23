"""From irreducible features of an atom or a pair to a block of the matrix, with weights that come from outside.

For shells of degree l1 and l2 and every L that couples to both, with channels w of the features x:

    c_uvk = sum_w W_wuv x^L_kw (+ b_uv for L = 0),    B_(u i)(v j) = s sum over L, k of w3j(l1, l2, L)_ijk c_uvk

s = 1/W as published, or 1/sqrt(W), which keeps the size of the features.

Source: QHNet (arXiv 2306.04922), expansion; sheet section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from ...kernels.constants import Float64Module
from ...kernels.conventions import w3j
from .layout import OrbitalLayout


@dataclass(frozen=True)
class Instruction:
    """One coupling: n1 shells of degree l1 and n2 of degree l2 from features of degree L.

    Attributes:
        l1, l2, degree: l1, l2 and L.
        n1, n2: numbers of shells.
        odd: whether l1 + l2 + L is odd, which asks for features of the opposite parity.
    """

    l1: int
    l2: int
    degree: int
    n1: int
    n2: int

    @property
    def count(self) -> int:
        """Pairs of shells."""
        return self.n1 * self.n2

    @property
    def odd(self) -> bool:
        """Whether l1 + l2 + L is odd: the features must have the opposite of the natural parity."""
        return (self.l1 + self.l2 + self.degree) % 2 == 1


def instructions(irreps: tuple[int, ...], lmax: int) -> tuple[Instruction, ...]:
    """All couplings of a padded block, in the order of their weights: by L, natural parity first."""
    found = [
        Instruction(l1, l2, degree, n1, n2)
        for l1, n1 in enumerate(irreps)
        for l2, n2 in enumerate(irreps)
        for degree in range(abs(l1 - l2), min(l1 + l2, lmax) + 1)
    ]
    return tuple(sorted(found, key=lambda i: (i.degree, i.odd, i.l1, i.l2)))


class Expansion(Float64Module):
    """The operator for one layout; it has no parameters.

    Args:
        layout: orbitals.
        lmax: largest degree of the features.
        channels: channels W of the features.
        published: s = 1/W.

    Attributes:
        n_weights, n_biases: numbers per block that the caller gives.
    """

    def __init__(self, layout: OrbitalLayout, lmax: int, channels: int, *, published: bool = False):
        super().__init__()
        self.scale = 1 / channels if published else 1 / sqrt(channels)
        self.instructions = instructions(layout.irreps, lmax)
        self.size, self.channels = layout.size, channels
        self.n_weights = channels * sum(i.count for i in self.instructions)
        self.n_biases = sum(i.count for i in self.instructions if i.degree == 0)
        # One matrix per pair of degrees, from the coefficients (L, k) to the components (i, j), and where they go.
        self.kinds = sorted({(i.l1, i.l2) for i in self.instructions})
        places = []
        for l1, l2 in self.kinds:
            tables = [w3j(l1, l2, i.degree) for i in self.instructions if (i.l1, i.l2) == (l1, l2)]
            matrix = np.concatenate([t.reshape(-1, t.shape[2]).T for t in tables]) * self.scale
            self.constant(f"table_{l1}_{l2}", torch.from_numpy(matrix))
            rows = layout.offsets[l1] + np.arange(layout.irreps[l1] * (2 * l1 + 1))
            columns = layout.offsets[l2] + np.arange(layout.irreps[l2] * (2 * l2 + 1))
            flat = (rows[:, None] * self.size + columns).reshape(layout.irreps[l1], 2 * l1 + 1, layout.irreps[l2], -1)
            places.append(flat.transpose(0, 2, 1, 3).ravel())
        order = torch.from_numpy(np.argsort(np.concatenate(places)))
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: list[Tensor], weights: Tensor, biases: Tensor) -> Tensor:
        """Blocks.

        Args:
            x: features ``(P, (L+1)^2, W)``; a second tensor holds those of opposite parity, which couplings of an odd
                sum of degrees then take.
            weights: ``(P, n_weights)``, one after the other for the instructions, channels innermost.
            biases: ``(P, n_biases)``.

        Returns:
            ``(P, B, B)`` padded blocks.
        """
        parts = self._coefficients(x, weights, biases)
        blocks = []
        for kind in self.kinds:
            own = [
                part for i, part in zip(self.instructions, parts, strict=True) if (i.l1, i.l2) == kind
            ]  # (P, n1 n2, 2L + 1) each
            table = getattr(self, f"table_{kind[0]}_{kind[1]}")
            blocks.append((torch.cat(own, dim=2) @ table.to(weights)).flatten(1))
        order: Tensor = self.order  # type: ignore[assignment]
        return torch.cat(blocks, dim=1).index_select(1, order).unflatten(1, (self.size, self.size))

    def _coefficients(self, x: list[Tensor], weights: Tensor, biases: Tensor) -> list[Tensor]:
        """``(P, n1 n2, 2L + 1)`` for every instruction; all of one degree and parity in one product."""
        parts: list[Tensor] = []
        start = 0
        matrices = weights.unflatten(1, (-1, self.channels))
        for degree in range(max(i.degree for i in self.instructions) + 1):
            for source in range(len(x)):
                counts = [
                    i.count for i in self.instructions if i.degree == degree and (len(x) == 1 or i.odd == bool(source))
                ]
                if not counts:
                    continue
                own = x[source][:, degree**2 : (degree + 1) ** 2]
                product = matrices[:, start : start + sum(counts)] @ own.transpose(1, 2)
                parts += (product + biases.unsqueeze(2) if degree == 0 else product).split(counts, dim=1)
                start += sum(counts)
        return parts
