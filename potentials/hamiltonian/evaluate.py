"""Errors of a Hamiltonian network on labels: matrix elements, orbital energies, orbitals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ...datasets.errors import UserError
from .base import HamiltonianModel
from .data import LabelSet
from .layout import Blocks, pair_index
from .level import Level
from .molecules import Molecules, collate
from .solve import orbital_errors
from .store import Label
from .targets import from_target

MICRO = 1e6
MILLI = 1e3
UNITS = {"hamiltonian": "µEh", "guess": "µEh", "orbital_energies": "µEh", "homo": "mEh", "lumo": "mEh", "gap": "mEh"}


def level_of(model: HamiltonianModel) -> Level:
    """Level of theory that a model was trained on.

    Raises:
        UserError: its checkpoint does not say.
    """
    if "level" not in model.card:
        raise UserError("the model does not say its level of theory: load it from a checkpoint that training wrote")
    return Level.from_header(model.card["level"], "the model's header")


@torch.no_grad()
def predict_blocks(model: HamiltonianModel, molecules: list[tuple[np.ndarray, np.ndarray]]) -> list[Blocks]:
    """What the network gives for molecules (numbers, positions Å) in one batch; blocks on the CPU, in float64."""
    parts = [Molecules.of(numbers, positions, dtype=model.dtype) for numbers, positions in molecules]
    batch = collate(parts).to(model.device)
    blocks = model(batch).to("cpu", torch.float64)
    return blocks.split([len(numbers) for numbers, _ in molecules])


def predicted_matrix(model: HamiltonianModel, label: Label) -> np.ndarray:
    """Hamiltonian ``(n, n)`` Eh in PySCF's order that the network gives for a label's geometry.

    Raises:
        UserError: the label does not hold the guess, or the overlap, that the model's target needs.
    """
    blocks = predict_blocks(model, [(label.numbers, label.positions)])[0]
    matrix = model.layout.to_matrix(blocks, torch.from_numpy(label.numbers)).numpy()
    return from_target(matrix, model.target, label.guess, label.overlap)


def evaluate(
    model: HamiltonianModel,
    labels: LabelSet,
    *,
    progress: Callable[[Iterable[Label]], Iterable[Label]] = iter,
) -> dict[str, Any]:
    """Errors averaged over molecules.

    Returns:
        "n_molecules"; "hamiltonian" and "guess" (the guess taken as the prediction): {"mae", "atoms", "pairs", "unit"};
        where labels hold the overlap "orbital_energies" (occupied), "homo", "lumo", "gap": {"mae", "unit"}, and
        "similarity" (mean |cos| of occupied coefficients) and "subspace" (overlap of occupied spaces) in %.

    Raises:
        UserError: another level of theory than the model's, or elements that it does not know.
    """
    if model.card.get("level"):
        labels.level.require_same(level_of(model), "the data", "the model")
    rows: list[dict[str, float]] = []
    for label in progress(labels.labels):
        model.layout.require(label.numbers.tolist(), label.name)
        rows.append(_errors(model, label))
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    report: dict[str, Any] = {"n_molecules": len(rows)}
    for name in ("hamiltonian", "guess"):
        parts = {"mae": name, "atoms": f"{name}_atoms", "pairs": f"{name}_pairs"}
        report[name] = {part: MICRO * mean[key] for part, key in parts.items() if key in mean}
        report[name]["unit"] = UNITS[name]
    for name in ("orbital_energies", "homo", "lumo", "gap"):
        if name in mean:
            factor = MICRO if UNITS[name] == "µEh" else MILLI
            report[name] = {"mae": factor * mean[name], "unit": UNITS[name]}
    for name in ("similarity", "subspace"):
        if name in mean:
            report[name] = {"mean": 100 * mean[name], "unit": "%"}
    return report


def _errors(model: HamiltonianModel, label: Label) -> dict[str, float]:
    reference, predicted = label.hamiltonian, None
    if reference is None or label.guess is None:  # a compact file: only the difference is known
        if label.delta is None or model.target != "delta":
            raise UserError(f"label {label.name} holds neither Hamiltonian and guess nor their difference")
        blocks = predict_blocks(model, [(label.numbers, label.positions)])[0]
        matrix = model.layout.to_matrix(blocks, torch.from_numpy(label.numbers)).numpy()
        found = _matrix_errors(model, label, matrix - label.delta, "hamiltonian")
        return found | _matrix_errors(model, label, label.delta, "guess")
    predicted = predicted_matrix(model, label)
    found = _matrix_errors(model, label, predicted - reference, "hamiltonian")
    found |= _matrix_errors(model, label, label.guess - reference, "guess")
    if label.overlap is not None:
        found |= orbital_errors(predicted, reference, label.overlap, int(label.numbers.sum()))
    return found


def _matrix_errors(model: HamiltonianModel, label: Label, error: np.ndarray, name: str) -> dict[str, float]:
    """Mean absolute error over the whole matrix, over blocks of atoms and over blocks of pairs."""
    numbers = torch.from_numpy(label.numbers)
    blocks = model.layout.to_blocks(torch.from_numpy(np.abs(error)), numbers)
    masks = model.layout.masks(numbers, pair_index(len(numbers)))
    own = float(blocks.diagonal.sum() / masks[0].sum())
    found = {name: float(np.abs(error).mean()), f"{name}_atoms": own}
    if len(blocks.lower):
        found[f"{name}_pairs"] = float(blocks.lower.sum() / masks[1].sum())
    return found
