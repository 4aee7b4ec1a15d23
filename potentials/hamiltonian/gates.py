"""What SPHNet leaves out: couplings of a tensor product (paths) and pairs of atoms, by learned gates on a schedule.

Three phases, counted in optimiser steps with T steps to an epoch: before 2 T random choices; before 3 T the best by the
learned scores; from 3 T on the paths stay as they are, and only they cost time. In evaluation nothing is random: the
first phase keeps everything, as the mean over the random choices.

Source: SPHNet (arXiv 2502.01171), adaptive sparsity, sheet 7; counted in steps, per molecule, with exact numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from ...kernels.constants import Float64Module
from ...kernels.conventions import Path

RANDOM, ADAPTIVE, FIXED = 1, 2, 3
SLACK = 1e-9
"""Fractions of a count that are rounding: (1 - 0.7) 10 is three."""


@dataclass(frozen=True)
class Choice:
    """Paths of a tensor product that are evaluated.

    Attributes:
        indices: which of all paths; None: all.
        coefficients: ``(K,)`` factor of each.
    """

    indices: tuple[int, ...] | None
    coefficients: Tensor

    def rows(self, x: Tensor) -> Tensor:
        """Rows of the chosen paths of a tensor that has one for every path."""
        if self.indices is None:
            return x
        return x.index_select(0, torch.tensor(self.indices, device=x.device))


class Scheduled(nn.Module):
    """A part of a network that changes with the optimiser's steps; its phase is part of the model's state."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = RANDOM

    def start_step(self, step: int, epoch: int, seed: int) -> None:
        """Prepare for an optimiser step.

        Args:
            step: number of finished optimiser steps.
            epoch: T, steps of an epoch; 0: the last phase at once.
            seed: of the random choices, which depend on nothing else but the step.
        """
        self.phase = RANDOM if step < 2 * epoch else ADAPTIVE if step < 3 * epoch else FIXED


def start_step(model: nn.Module, step: int, epoch: int, *, random_pairs: bool = True) -> None:
    """Tell every gate of a model the number of finished optimiser steps, see `Scheduled.start_step`.

    ``random_pairs=False``: gates of pairs have no random phase.
    """
    for k, module in enumerate(m for m in model.modules() if isinstance(m, Scheduled)):
        module.start_step(step, epoch, seed=(step * 1009 + k) % 2**31)
        if module.phase == RANDOM and isinstance(module, PairGate) and not random_pairs:
            module.phase = ADAPTIVE


def path_coefficients(paths: tuple[Path, ...]) -> Tensor:
    """Factors of the paths beside sqrt(2 l3 + 1) w3j: ``sqrt(a / n_l)`` with ``a = sqrt((2l+1) / n)``.

    n_l of the n paths lead to degree l; the published layers hand a to e3nn as the weight of a path, whose square
    root e3nn takes.

    Source: QHNet (arXiv 2306.04922), sheet 4.3.
    """
    into = [sum(other.l3 == p.l3 for other in paths) for p in paths]
    a = [sqrt((2 * p.l3 + 1) / len(paths)) for p in paths]
    return torch.tensor([sqrt(x / n) for x, n in zip(a, into, strict=True)], dtype=torch.float64)


class DensePaths(Float64Module):
    """All paths, always."""

    coefficients: Tensor

    def __init__(self, paths: tuple[Path, ...]):
        super().__init__()
        self.constant("coefficients", path_coefficients(paths))

    def forward(self) -> Choice:
        """All of them with their own factors."""
        return Choice(None, self.coefficients)


class SparsePaths(Scheduled):
    """Learned choice among paths: coefficient ``a_k p_k sum_U a / sum_K a p`` for the chosen paths K among all U.

    With all paths and p = 1 these are the factors of `path_coefficients`. (Published without the constant sum over U.)

    Args:
        paths: all of them.
        sparsity: fraction left out.

    Source: SPHNet (arXiv 2502.01171), sparse tensor product gate, sheet 7.2 and 7.3.
    """

    frozen: Tensor

    def __init__(self, paths: tuple[Path, ...], sparsity: float):
        super().__init__()
        self.all = DensePaths(paths)
        self.kept = max(1, int((1 - sparsity) * len(paths) + SLACK))
        self.scores = nn.Parameter(torch.ones(len(paths)))
        self.register_buffer("frozen", torch.zeros(self.kept))
        self.chosen: tuple[int, ...] = tuple(range(self.kept))

    def start_step(self, step: int, epoch: int, seed: int) -> None:
        """Choose anew, unless the last phase has begun."""
        before, generator = self.phase, torch.Generator().manual_seed(seed)
        super().start_step(step, epoch, seed)
        shuffled = torch.randperm(len(self.scores), generator=generator)
        if self.phase == RANDOM:
            self.chosen = tuple(sorted(shuffled[: self.kept].tolist()))
        elif before != FIXED:
            # Ties, as of scores that never got a gradient, are broken at random.
            best = self.scores.detach().cpu()[shuffled].argsort(descending=True, stable=True)[: self.kept]
            self.chosen = tuple(sorted(shuffled[best].tolist()))
            self.frozen.copy_(self._normalised(self.chosen).detach())

    def forward(self) -> Choice:
        """The paths of this step."""
        if self.phase == FIXED:
            return Choice(self.chosen, self.frozen)
        if self.phase == RANDOM and not self.training:
            return Choice(None, self._normalised(tuple(range(len(self.scores)))))
        return Choice(self.chosen, self._normalised(self.chosen))

    def _normalised(self, chosen: tuple[int, ...]) -> Tensor:
        a = self.all.coefficients.to(self.scores)
        weighted = (a * self.scores)[list(chosen)]
        return weighted * (a.sum() / weighted.sum())

    def get_extra_state(self) -> Tensor:
        """Phase and chosen paths, for the checkpoint."""
        return torch.tensor([self.phase, *self.chosen])

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of `get_extra_state`."""
        self.phase, *chosen = state.tolist()
        self.chosen = tuple(chosen)


class PairGate(Scheduled):
    """Learned choice among the pairs of every molecule by a linear score of their invariants.

    Kept are ``ceil((1 - s) P)`` of the P pairs of a molecule, the best by score g (more where scores are equal, as of
    pairs that symmetry makes alike), or random ones in the first phase of training. Their invariants are multiplied by
    ``sigmoid(g - q)``, q the lowest best score, through which the gate learns.

    Args:
        inputs: number of invariants.
        sparsity: s.

    Source: SPHNet (arXiv 2502.01171), sparse pair gate, sheet 7.1; per molecule (sheet 7.4).
    """

    def __init__(self, inputs: int, sparsity: float):
        super().__init__()
        self.share, self.score = 1 - sparsity, nn.Linear(inputs, 1)
        self.seed = 0

    def start_step(self, step: int, epoch: int, seed: int) -> None:
        """Note the phase and the seed of random choices."""
        super().start_step(step, epoch, seed)
        self.seed = seed

    def forward(self, invariants: Tensor, molecule: Tensor, n_molecules: int) -> tuple[Tensor, Tensor]:
        """Choose.

        Args:
            invariants: ``(P, inputs)``.
            molecule: ``(P,)`` molecule of each pair, non-decreasing.
            n_molecules: their number G.

        Returns:
            Indices ``(K,)`` of the kept pairs, ascending, and their factors ``(K, 1)``.
        """
        scores = self.score(invariants)[:, 0]
        counts = torch.bincount(molecule, minlength=n_molecules)
        wanted = torch.ceil(self.share * counts.double() - SLACK).long()
        threshold = _kth_largest(scores, molecule, counts, wanted)[molecule]
        if self.phase == RANDOM and self.training:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.rand(len(scores), generator=generator).to(scores)
            kept = drawn >= _kth_largest(drawn, molecule, counts, wanted)[molecule]
        elif self.phase == RANDOM:
            kept = torch.ones_like(scores, dtype=torch.bool)
        else:
            rounding = 32 * torch.finfo(scores.dtype).eps * (1 + threshold.abs())
            kept = scores >= threshold - rounding
        chosen = kept.nonzero()[:, 0]
        return chosen, torch.sigmoid(scores - threshold)[chosen].unsqueeze(1)

    def get_extra_state(self) -> Tensor:
        """Phase, for the checkpoint."""
        return torch.tensor([self.phase])

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of `get_extra_state`."""
        self.phase = int(state[0])


def _kth_largest(values: Tensor, group: Tensor, counts: Tensor, wanted: Tensor) -> Tensor:
    """The ``wanted[g]``-th largest value of every group; 0 for empty groups. ``group`` is non-decreasing."""
    by_value = values.detach().argsort(descending=True, stable=True)
    order = by_value[group[by_value].argsort(stable=True)]
    first = counts.cumsum(0) - counts
    place = (first + wanted.clamp(min=1) - 1).clamp(max=max(len(values) - 1, 0))
    found = values[order[place]] if len(values) else values.new_zeros(len(counts))
    return torch.where(counts > 0, found, 0.0)
