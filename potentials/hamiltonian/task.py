"""The training task of Hamiltonian networks: masked errors of blocks, and of orbitals on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...training.config import ConfigError, option
from ...training.task import Losses, Task
from .base import HamiltonianModel
from .data import Batch, Orbitals, assemble
from .layout import Blocks
from .molecules import Molecules

MICRO = 1e6  # µEh in an Eh


@dataclass(frozen=True)
class LossOptions:
    """Weights of the loss terms, errors in Eh; the published loss is mae + mse.

    With C the reference orbitals, W = C^T (H_predicted - H) C is the error in their basis: to first order its diagonal
    is the error of the orbital energies, and W_ia / (e_a - e_i) for occupied i and virtual a that of the density.
    Source: SPHNet (arXiv 2502.01171); wavefunction alignment (WANet), here without its eigenvector term.
    """

    mae: float = option(1.0, "mean absolute error of the elements of atoms' and lower pairs' blocks")
    mse: float = option(1.0, "mean squared error of the same, Eh²")
    alignment: float = option(0.0, "mean |W_ii| of occupied orbitals plus mean |W_ij| of all pairs of orbitals")
    density: float = option(0.0, "root mean square over a molecule's occupied i of W_ia / (e_a - e_i)")

    def __post_init__(self) -> None:
        values = [getattr(self, f.name) for f in fields(self)]
        if min(values) < 0 or not max(values):
            raise ConfigError("weights of the loss must be >= 0, and one of them positive")

    @property
    def weights(self) -> list[float]:
        """Weights of the terms, in the order of the fields."""
        return [self.mae, self.mse, self.alignment, self.density]

    @property
    def orbitals(self) -> bool:
        """Whether a term needs reference orbitals."""
        return self.alignment > 0 or self.density > 0


class HamiltonianTask(Task):
    """Train a Hamiltonian network.

    Args:
        model: in its dtype.
        loss: weights of the terms.
        header: what goes into exported checkpoints besides the model's own facts.
    """

    model: HamiltonianModel

    def __init__(
        self, model: HamiltonianModel, loss: LossOptions | None = None, *, header: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.loss, self.header = model, loss or LossOptions(), dict(header or {})
        self.steps = 0  # optimiser steps: what the gates' schedule counts

    def get_extra_state(self) -> Tensor:
        """Finished steps, for exact resume."""
        return torch.tensor([self.steps])

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of `get_extra_state`."""
        self.steps = int(state[0])

    def losses(self, batch: Batch, *, training: bool) -> Losses:
        if training:
            self.model.start_step(self.steps)
            self.steps += 1
        molecules = batch.molecules
        predicted = self.model(molecules)
        if molecules.targets is None:  # no share of this step: zeros that depend on the weights
            zero = 0.0 * (predicted.diagonal.sum() + predicted.lower.sum())
            return Losses(zero.expand(4), zero.detach().expand(4), zero.detach().double().expand(7))
        masks = self.model.layout.masks(molecules.numbers, molecules.pairs)
        targets = molecules.targets
        error = Blocks((predicted.diagonal - targets.diagonal) * masks[0], (predicted.lower - targets.lower) * masks[1])
        entries = (masks[0].sum() + masks[1].sum()).to(error.diagonal.dtype)
        absolute = error.diagonal.abs().sum() + error.lower.abs().sum()
        square = error.diagonal.square().sum() + error.lower.square().sum()
        aligned, density = absolute.new_zeros(()), absolute.new_zeros(())
        if self.loss.orbitals and batch.orbitals is not None:
            aligned, density = orbital_losses(error, molecules, batch.orbitals, self.model.layout.size)
        molecules_count = absolute.new_tensor(float(molecules.n_molecules))
        return Losses(
            torch.stack([absolute, square, aligned, density]),
            torch.stack([entries, entries, molecules_count, molecules_count]).detach(),
            torch.cat([error_sums(error, masks, molecules), density.detach().double()[None]]),
        )

    def weights(self, progress: float) -> list[float]:
        return self.loss.weights

    def report(self, sums: Tensor) -> dict[str, float]:
        report = error_report(sums)
        if self.loss.density > 0:
            report["density_error"] = float(sums[6] / sums[1].clamp(min=1))
        return report

    def summary(self, metrics: Mapping[str, float]) -> str:
        return (
            f"H MAE {metrics['h_mae']:.4g} µEh (atoms {metrics['h_diagonal_mae']:.4g}, "
            f"pairs {metrics['h_pairs_mae']:.4g})"
            + (f" density {metrics['density_error']:.3g}" if "density_error" in metrics else "")
        )

    def export(self, path: str | Path, metrics: Mapping[str, float]) -> None:
        from . import save

        finite = {key: value for key, value in metrics.items() if abs(value) < float("inf")}
        save(self.model, path, {**self.header, "metrics": finite, "steps": self.steps}, force=True)


def orbital_losses(error: Blocks, molecules: Molecules, orbitals: Orbitals, size: int) -> tuple[Tensor, Tensor]:
    """Sums over the molecules of the terms `alignment` (Eh) and `density` of :class:`LossOptions`."""
    c = orbitals.coefficients
    w = c.mT @ assemble(error, molecules, size)[:, : c.shape[1], : c.shape[1]] @ c
    place = torch.arange(c.shape[2], device=c.device)
    real = place < orbitals.n_orbitals[:, None]
    occupied = place < orbitals.n_occupied[:, None]
    virtual = real & ~occupied
    diagonal = (w.diagonal(dim1=1, dim2=2).abs() * occupied).sum(1) / orbitals.n_occupied
    pairs = (w.abs().sum((1, 2)) - w.diagonal(dim1=1, dim2=2).abs().sum(1)) / (
        orbitals.n_orbitals * (orbitals.n_orbitals - 1)
    ).clamp(min=1)
    gap = orbitals.energies[:, None, :] - orbitals.energies[:, :, None]  # (G, i, a)
    mixed = (occupied[:, :, None] & virtual[:, None, :]).to(w.dtype) / gap.clamp(min=1e-3)
    rotation = (w * mixed).square().sum((1, 2)) / orbitals.n_occupied
    return (diagonal + pairs).sum(), (rotation + 1e-16).sqrt().sum()


@torch.no_grad()
def error_sums(error: Blocks, masks: tuple[Tensor, Tensor], molecules: Molecules) -> Tensor:
    """Sums ``(6,)`` float64 for `error_report`: mean absolute errors of molecules over the whole matrix, number of
    molecules; |x| and number of elements of atoms' blocks; the same of pairs' blocks."""
    own = error.diagonal.abs().sum((1, 2), dtype=torch.float64)
    lower = error.lower.abs().sum((1, 2), dtype=torch.float64)
    n_own, n_lower = masks[0].sum((1, 2)), masks[1].sum((1, 2))
    zeros = own.new_zeros(molecules.n_molecules)
    total = zeros.index_add(0, molecules.batch, own).index_add(0, molecules.pair_batch, 2 * lower)
    count = zeros.index_add(0, molecules.batch, n_own.double())
    count = count.index_add(0, molecules.pair_batch, 2.0 * n_lower.double())
    parts = [(total / count).sum(), count.new_tensor(len(count)), own.sum(), n_own.sum(), lower.sum(), n_lower.sum()]
    return torch.stack([x.double() for x in parts])


def error_report(sums: Tensor) -> dict[str, float]:
    """µEh, of the target: `h_mae` over whole matrices, averaged over molecules; the others over elements."""
    per_molecule, n, own, n_own, lower, n_lower = sums[:6].tolist()
    return {
        "h_mae": MICRO * per_molecule / max(n, 1),
        "h_diagonal_mae": MICRO * own / max(n_own, 1),
        "h_pairs_mae": MICRO * lower / max(n_lower, 1),
    }
