"""Features of atoms (for diagonal blocks) and of pairs of atoms (for the others), by tensor products of node features.

Features come as a list of tensors ``(P, (L+1)^2, C)``. In "so3" mode there is one, in which couplings of even and odd
sums of degrees meet, as published. In "o3" mode a second one holds what odd sums make: features of the opposite
parity, which no map mixes with the first, so that mirror images of a molecule get mirror images of its matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...kernels.conventions import coupling_paths
from ...kernels.degrees import degree_gate
from ...kernels.pairs import pair_product
from .gates import Choice, DensePaths, PairGate, SparsePaths
from .molecules import Molecules
from .scalars import RADIAL_SIZE, BiasedWeigher, Idle, Weigher
from .steerable import Gate, Linear, inner_products

PAIRS_AT_ONCE = 256
"""Pairs that are held at once where no gradients are needed."""


@dataclass(frozen=True)
class Pairs:
    """Blocks of pairs that are evaluated: of every pair (i, j), i > j, one order or both.

    Attributes:
        ends: ``(2, P)`` atoms i and j.
        lengths: ``(P,)`` Å.
        molecule: ``(P,)`` molecule of each pair.
        n_molecules: number of molecules.
        pair: ``(Q,)`` pair of each block, non-decreasing.
        flipped: ``(Q,)`` whether the rows of the block belong to j.
        share: ``(Q,)`` weight of the block in the mean over the blocks of its pair.
    """

    ends: Tensor
    lengths: Tensor
    molecule: Tensor
    n_molecules: int
    pair: Tensor
    flipped: Tensor
    share: Tensor

    @classmethod
    def of(cls, molecules: Molecules, orders: str) -> Pairs:
        """All pairs of some molecules.

        Args:
            molecules: the molecules.
            orders: "both"; "element": the heavier element first and both orders for equal ones, which nothing but
                the numbering of the atoms could tell apart; "index": i > j as given, as published.
        """
        i, j = molecules.pairs
        if orders == "element":
            z_i, z_j = molecules.numbers[i], molecules.numbers[j]
            wanted = torch.stack([z_i >= z_j, z_j >= z_i], dim=1)
        else:
            wanted = torch.ones(len(i), 2, dtype=torch.bool, device=i.device)
            wanted[:, 1] = orders == "both"
        pair, flipped = wanted.nonzero().unbind(1)
        share = 1 / wanted.sum(1).to(molecules.positions.dtype)[pair]
        lengths = molecules.pair_vectors().square().sum(1).sqrt()
        return cls(
            molecules.pairs,
            lengths,
            molecules.pair_batch,
            molecules.n_molecules,
            pair,
            flipped.bool(),
            share,
        )

    @property
    def rows(self) -> Tensor:
        """``(Q,)`` atom of the rows of each block."""
        return torch.where(self.flipped, self.ends[1][self.pair], self.ends[0][self.pair])

    @property
    def columns(self) -> Tensor:
        """``(Q,)`` atom of the columns of each block."""
        return torch.where(self.flipped, self.ends[0][self.pair], self.ends[1][self.pair])

    def select(self, kept: Tensor) -> tuple[Pairs, Tensor]:
        """Pairs of these indices, which must ascend, and the indices of their blocks."""
        place = torch.full_like(self.lengths, -1, dtype=torch.int64)
        place[kept] = torch.arange(len(kept), device=kept.device)
        blocks = (place[self.pair] >= 0).nonzero()[:, 0]
        return self._part(kept, blocks, place[self.pair[blocks]]), blocks

    def slices(self, size: int) -> Iterator[tuple[slice, slice, Pairs]]:
        """Parts of that many pairs: the range of pairs, the range of blocks, and both."""
        for start in range(0, len(self.lengths), size):
            part = slice(start, min(start + size, len(self.lengths)))
            bounds = torch.tensor([part.start, part.stop], device=self.pair.device)
            first, last = torch.searchsorted(self.pair, bounds).tolist()
            blocks = slice(first, last)
            yield part, blocks, self._part(part, blocks, self.pair[blocks] - start)

    def _part(self, pairs: Tensor | slice, blocks: Tensor | slice, pair: Tensor) -> Pairs:
        return Pairs(
            self.ends[:, pairs],
            self.lengths[pairs],
            self.molecule[pairs],
            self.n_molecules,
            pair,
            self.flipped[blocks],
            self.share[blocks],
        )

    def mean(self, blocks: Tensor) -> Tensor:
        """``(P, B, B)``: mean over the orders of every pair of blocks ``(Q, B, B)``, rows of atom i."""
        turned = torch.where(self.flipped[:, None, None], blocks.transpose(1, 2), blocks)
        if len(self.pair) == len(self.lengths):
            return turned
        weighted = turned * self.share.to(blocks)[:, None, None]
        return blocks.new_zeros(len(self.lengths), *blocks.shape[1:]).index_add(0, self.pair, weighted)


class Product(nn.Module):
    """Tensor product of two features, gate and linear map: ``Linear(Gate(x (x) y + rest))``.

    Args:
        channels: C.
        lmax: largest degree L.
        parity: "so3" or "o3".
        sparsity: fraction of paths that a learned gate leaves out; None: all paths, no gate.
    """

    def __init__(self, channels: int, lmax: int, *, parity: str, sparsity: float | None):
        super().__init__()
        degrees = tuple(range(lmax + 1))
        self.lmax, self.parity, self.paths = lmax, parity, coupling_paths(degrees, lmax, degrees, "so3")
        self.choice = DensePaths(self.paths) if sparsity is None else SparsePaths(self.paths, sparsity)
        self.gate = Gate(lmax + 1, channels)
        self.outer = Linear(lmax + 1, channels, channels)
        if parity == "o3":
            self.opposite = Linear(lmax + 1, channels, channels, bias=False)

    def forward(
        self, x: Tensor, y: Tensor, weights: Tensor, choice: Choice, rest: Tensor | None = None
    ) -> list[Tensor]:
        """Features of products of x and y ``(P, (L+1)^2, C)`` with weights ``(P, K, C)`` of the chosen paths."""
        made = self._products(x, y, weights, choice)
        first = made[0] if rest is None else made[0] + rest
        controls = self.gate.controls(first)
        out = [self.outer(degree_gate(first, controls))]
        if self.parity == "o3":
            out.append(self.opposite(degree_gate(made[1], torch.cat([0 * controls[:, :1], controls[:, 1:]], dim=1))))
        return out

    def _products(self, x: Tensor, y: Tensor, weights: Tensor, choice: Choice) -> list[Tensor]:
        paths = self.paths if choice.indices is None else [self.paths[k] for k in choice.indices]
        if self.parity == "so3":
            return [pair_product(x, y, weights, paths, self.lmax, together=True)]
        made = []
        for odd in (0, 1):
            own = [k for k, p in enumerate(paths) if (p.l1 + p.l2 + p.l3) % 2 == odd]
            chosen = [paths[k] for k in own]
            made.append(pair_product(x, y, weights[..., own, :], chosen, self.lmax, together=True))
        return made


class SelfInteraction(nn.Module):
    """Features of diagonal blocks: product of two copies of every atom's features, and the features themselves.

    Args:
        channels, lmax, parity, sparsity: as of `Product`.
        idle: also make the tensors that the released code makes and never uses.

    Source: QHNet (arXiv 2306.04922), sheet 4.5; SPHNet (arXiv 2502.01171), sheet 5.3.
    """

    def __init__(self, channels: int, lmax: int, *, parity: str, sparsity: float | None = None, idle: bool = False):
        super().__init__()
        n = lmax + 1
        self.gates = nn.ModuleList(Gate(n, channels) for _ in range(2))
        self.inner = nn.ModuleList(Linear(n, channels, channels) for _ in range(2))
        self.product = Product(channels, lmax, parity=parity, sparsity=sparsity)
        self.weights = nn.Parameter(torch.randn(len(self.product.paths), channels))
        if idle and sparsity is not None:
            self.idle = Idle(tuple(self.weights.shape), *_idle_of_gate(len(self.product.paths)))

    def forward(self, x: Tensor, previous: Sequence[Tensor] = ()) -> list[Tensor]:
        """Features ``(N, (L+1)^2, C)`` of the diagonal from those of atoms, on top of previous ones if there are."""
        left, right = (linear(gate(x)) for gate, linear in zip(self.gates, self.inner, strict=True))
        choice = self.product.choice()
        weights = choice.rows(self.weights) * choice.coefficients.to(x).unsqueeze(1)
        return add(self.product(left, right, weights, choice, x), previous)


@dataclass(frozen=True)
class Prepared:
    """What a pair layer knows before it touches single pairs.

    Attributes:
        features: ``(N, (L+1)^2, C)`` of atoms.
        choice: paths that are evaluated.
        matrices: from the hidden layers of the two weight networks to the weights, and the bias of the second.
        invariants: ``(K, I)`` of the pairs, or of their blocks.
        kept: ``(K,)`` pairs that take part, ascending; None: all.
    """

    features: Tensor
    choice: Choice
    matrices: tuple[Tensor, Tensor, Tensor]
    invariants: Tensor
    kept: Tensor | None = None


class PairInteraction(nn.Module):
    """Features of blocks of pairs: products of the features of both atoms, weighed by distance and invariants.

    Args:
        channels, lmax, parity, sparsity: as of `Product`.
        n_radial: number of radial functions.
        hidden: width of the weight networks.
        symmetric: the invariants do not tell the atoms apart (SPHNet); otherwise they do (QHNet).
        gated: fraction of pairs that a learned gate leaves out; None: no gate.
        idle: also make the tensors that the released code makes and never uses.

    Source: QHNet (arXiv 2306.04922), sheet 4.5; SPHNet (arXiv 2502.01171), sheet 5.3.
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        *,
        parity: str,
        n_radial: int,
        hidden: int,
        symmetric: bool,
        sparsity: float | None = None,
        gated: float | None = None,
        idle: bool = False,
    ):
        super().__init__()
        n = lmax + 1
        self.symmetric = symmetric
        width = (n if symmetric else n + 1) * channels
        self.scalars = Linear(n, channels, channels)
        self.gate, self.inner = Gate(n, channels), Linear(n, channels, channels)
        self.product = Product(channels, lmax, parity=parity, sparsity=sparsity)
        paths = len(self.product.paths)
        self.radial = Weigher(n_radial, hidden, paths, channels, size=RADIAL_SIZE)
        self.state = BiasedWeigher(width, hidden, paths, channels)
        self.pair_gate = None if gated is None else PairGate(width, gated)
        if idle:
            self.idle = Idle(*self._idle_shapes(paths, channels, width, n))

    def _idle_shapes(self, paths: int, channels: int, width: int, n: int) -> list[tuple[int, ...]]:
        if not self.symmetric:
            return [(paths, channels), (n, channels, channels), (channels,)]
        return [*_idle_of_gate(paths), *([] if self.pair_gate else [(width,), (1,)])]

    def prepare(self, x: Tensor, pairs: Pairs) -> Prepared:
        """Features of atoms, invariants of all pairs, and which pairs and paths take part."""
        s, y = self.scalars(x), self.inner(self.gate(x))
        choice = self.product.choice()
        known = (y, choice, (self.radial.outer(choice), *self.state.outer(choice)))
        ends = [s.index_select(0, k) for k in pairs.ends]
        products = inner_products(*ends).flatten(1)
        if not self.symmetric:
            first, second = (s[:, 0].index_select(0, k) for k in (pairs.rows, pairs.columns))
            return Prepared(*known, torch.cat([first, second, products.index_select(0, pairs.pair)], dim=1))
        scalars = [s[:, 0].index_select(0, k) for k in pairs.ends]
        invariants = torch.cat([0.5 * (scalars[0] + scalars[1]), products], dim=1)
        if self.pair_gate is None:
            return Prepared(*known, invariants)
        kept, factors = self.pair_gate(invariants, pairs.molecule, pairs.n_molecules)
        return Prepared(*known, invariants.index_select(0, kept) * factors, kept)

    def forward(
        self, prepared: Prepared, pairs: Pairs, radial: Tensor, previous: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Features ``(Q, (L+1)^2, C)`` of blocks, on top of previous ones, which pairs that a gate leaves out keep.

        Args:
            prepared: of these pairs, see `prepare` and `part`.
            pairs: the pairs.
            radial: ``(P, n)`` radial functions.
            previous: features of an earlier layer; needed where a gate leaves pairs out.
        """
        if prepared.kept is None:
            return add(self._evaluate(prepared, pairs, radial), previous)
        if not previous:
            raise ValueError("pairs that a gate leaves out have no features but previous ones")
        chosen, blocks = pairs.select(prepared.kept)
        found = self._evaluate(prepared, chosen, radial.index_select(0, prepared.kept))
        return [old.index_add(0, blocks, new) for old, new in zip(previous, found, strict=True)]

    def _evaluate(self, prepared: Prepared, pairs: Pairs, radial: Tensor) -> list[Tensor]:
        from_radial, from_state, bias = prepared.matrices
        distances = self.radial.hidden(radial)
        distances = distances if self.symmetric else distances.index_select(0, pairs.pair)
        states = nn.functional.linear(self.state.hidden(prepared.invariants), from_state, bias)
        weights = (distances @ from_radial.T) * states
        weights = weights.unflatten(1, (-1, prepared.features.shape[2]))
        if self.symmetric and len(pairs.pair) != len(weights):
            weights = weights.index_select(0, pairs.pair)
        ends = (prepared.features.index_select(0, k) for k in (pairs.columns, pairs.rows))
        return self.product(*ends, weights, prepared.choice)  # type: ignore[no-any-return]

    def part(self, prepared: Prepared, pairs: slice, blocks: slice) -> Prepared:
        """What concerns a range of pairs, and of their blocks."""
        if prepared.kept is None:
            chosen = pairs if self.symmetric else blocks
            return replace(prepared, invariants=prepared.invariants[chosen])
        bounds = torch.tensor([pairs.start, pairs.stop], device=prepared.kept.device)
        first, last = torch.searchsorted(prepared.kept, bounds).tolist()
        kept = prepared.kept[first:last] - pairs.start
        return replace(prepared, invariants=prepared.invariants[first:last], kept=kept)


def add(features: list[Tensor], previous: Sequence[Tensor]) -> list[Tensor]:
    """Sum of features, set by set; nothing is added where there are no previous ones."""
    if not previous:
        return features
    return [a + b for a, b in zip(features, previous, strict=True)]


def _idle_of_gate(paths: int) -> list[tuple[int, ...]]:
    """A linear map from 256 invariants to the paths, in the released gate of paths."""
    return [(256, paths), (paths,)]


class Head(nn.Module):
    """Linear map to the channels of the expansion.

    Args:
        channels, bottleneck: numbers of channels.
        lmax: largest degree.
        parity: "so3" or "o3".
    """

    def __init__(self, channels: int, bottleneck: int, lmax: int, *, parity: str):
        super().__init__()
        sets = 2 if parity == "o3" else 1
        self.maps = nn.ModuleList(Linear(lmax + 1, channels, bottleneck, bias=False) for _ in range(sets))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features ``(P, (L+1)^2, bottleneck)`` of the expansion."""
        return [linear(x) for linear, x in zip(self.maps, features, strict=True)]
