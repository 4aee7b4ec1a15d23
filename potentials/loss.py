"""The loss of energy models: per-term distance functions and masked sums over labelled entries.

Errors: energy per atom (eV/atom, one entry per structure), forces (eV/Å, one entry per atom: the length of the
error vector), stress (eV/Å³, one entry per structure: the Frobenius norm of the error tensor). Lengths make the
loss invariant under rotations, which a sum over components would not be (except for "mse").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..datasets.graph import Graph
from ..datasets.units import GIGAPASCAL
from ..training.config import ConfigError, option
from ..training.schedule import check_weight, weight_at
from .base import Prediction

TERMS = ("energy", "forces", "stress")
UNITS = {"energy": "meV/atom", "forces": "meV/Å", "stress": "GPa"}
SCALES = {"energy": 1e3, "forces": 1e3, "stress": 1 / GIGAPASCAL}
"""Units in which errors are reported, and the factors from eV/atom, eV/Å and eV/Å³ to them."""
VOIGT_MULTIPLICITY = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)


@dataclass(frozen=True)
class TermOptions:
    """One term of the loss."""

    weight: float | dict[float, float] = option(
        1.0,
        "a number, or steps by progress: {0: 1, 0.75: 10} means 10 in the last quarter; 0 leaves the term out",
    )
    function: Literal["huber", "mse", "mae"] = option("huber", "huber, mse or mae of the error's length")
    delta: float = option(0.01, "huber: length where the square turns into a straight line (eV/atom, eV/Å, eV/Å³)")

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        if self.delta <= 0:
            raise ConfigError(f"delta must be positive, got {self.delta}")

    @property
    def used(self) -> bool:
        steps = self.weight.values() if isinstance(self.weight, dict) else (self.weight,)
        return any(weight > 0 for weight in steps)


@dataclass(frozen=True)
class LossOptions:
    """The loss: sum over terms of weight x mean over labelled entries of function(error)."""

    energy: TermOptions = option(TermOptions(weight=1.0), "error of the energy per atom, eV/atom")
    forces: TermOptions = option(TermOptions(weight=10.0), "error of the forces, eV/Å")
    stress: TermOptions = option(
        TermOptions(weight=0.0), "error of the stress, eV/Å³; 100 is a good weight where labels exist"
    )

    def __post_init__(self) -> None:
        if not any(self.term(name).used for name in TERMS):
            raise ConfigError("every weight of the loss is 0; give energy, forces or stress a positive weight")

    def term(self, name: str) -> TermOptions:
        chosen: TermOptions = getattr(self, name)
        return chosen

    def weights(self, progress: float) -> list[float]:
        """Weights of energy, forces, stress at `progress` in [0, 1]."""
        return [weight_at(self.term(name).weight, progress) for name in TERMS]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that some part of the training uses."""
        return tuple(name for name in TERMS if self.term(name).used)


@dataclass
class Errors:
    """Errors of a batch with their masks; a quantity that was not predicted or has no label is None.

    energy (G,) float64 eV/atom; forces (N, 3) eV/Å; stress (G, 6) eV/Å³; masks: True where labelled.
    """

    values: dict[str, Tensor]
    masks: dict[str, Tensor]


def errors_of(prediction: Prediction, graph: Graph) -> Errors:
    """Prediction minus label of every quantity that has both; 0 where the mask is False."""
    values: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name in TERMS:
        predicted, label = getattr(prediction, name), graph.labels.get(name)
        if predicted is None or label is None:
            continue
        mask = graph.masks[name]
        if name == "energy":
            difference = (predicted - label) / graph.n_atoms
        elif name == "forces":
            mask = mask.index_select(0, graph.batch)
            difference = predicted - label
        else:
            mask = mask if prediction.stress_mask is None else mask & prediction.stress_mask
            difference = predicted - label
        rows = mask if difference.ndim == 1 else mask[:, None]
        values[name], masks[name] = torch.where(rows, difference, 0.0), mask
    return Errors(values, masks)


def distance(term: TermOptions, squared: Tensor) -> Tensor:
    """The term's function of the squared length of the errors; finite gradients at zero.

    mse: x²; mae: x; huber: x²/2 for x < δ, else δ (x − δ/2); with x the length, δ → term.delta.
    """
    if term.function == "mse":
        return squared
    if term.function == "mae":
        return _safe_sqrt(squared, 0.0)
    line = term.delta * (_safe_sqrt(squared, 0.5 * term.delta**2) - 0.5 * term.delta)
    return torch.where(squared < term.delta**2, 0.5 * squared, line)


def _safe_sqrt(squared: Tensor, floor: float) -> Tensor:
    """Square root where squared > floor, 0 elsewhere, with gradient 0 there instead of inf or NaN."""
    above = squared > floor
    return torch.where(above, torch.where(above, squared, 1.0).sqrt(), 0.0)


def squared_lengths(name: str, values: Tensor) -> Tensor:
    """Squared lengths, one per entry: (G,) for energy and stress (Frobenius), (N,) for forces."""
    if name == "energy":
        return values * values
    if name == "forces":
        return (values * values).sum(-1)
    return (values * values * values.new_tensor(VOIGT_MULTIPLICITY)).sum(-1)


def loss_terms(
    options: LossOptions, errors: Errors, graph: Graph, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of the terms over labelled entries and their (weighted) numbers, ``(3,)`` each, float64.

    Args:
        options: the loss.
        errors: see :func:`errors_of`.
        graph: the batch.
        weights: ``(G,)`` weight of each structure, or None for 1.
    """
    totals, counts = [], []
    for name in TERMS:
        if name not in errors.values or not options.term(name).used:
            zero = graph.positions.new_zeros((), dtype=torch.float64)
            totals.append(zero)
            counts.append(zero)
            continue
        cost = distance(options.term(name), squared_lengths(name, errors.values[name]))
        share = errors.masks[name]
        if weights is not None:
            rows = weights.index_select(0, graph.batch) if name == "forces" else weights
            cost, share = cost * rows, share * rows
        totals.append(cost.sum(dtype=torch.float64))
        counts.append(share.sum(dtype=torch.float64))
    return torch.stack(totals), torch.stack(counts)
