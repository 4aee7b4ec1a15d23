"""How far a potential is from its symmetries, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..datasets.graph import Graph, collate, graph_from_structure
from ..datasets.structure import Structure
from ..potentials.base import Potential, Prediction, predict


@dataclass(frozen=True)
class SymmetryReport:
    """Largest relative errors of energy and forces; 0 is perfect.

    Attributes:
        rotation, reflection, translation, permutation: under that operation of the whole structure.
        batch: prediction in a batch with a second structure against alone.
    """

    rotation: float
    reflection: float
    translation: float
    permutation: float
    batch: float


def evaluate(model: Potential, *structures: Structure) -> Prediction:
    """Prediction of structures as one batch, geometry in float64."""
    return predict(model, collate([graph(model, structure) for structure in structures]))


def graph(model: Potential, structure: Structure) -> Graph:
    """Graph of a structure for a model, geometry in float64."""
    return graph_from_structure(structure, model.cutoff, dtype=torch.float64)


def random_rotation(seed: int) -> np.ndarray:
    """A proper rotation matrix ``(3, 3)``."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def moved(structure: Structure, matrix: np.ndarray, shift: np.ndarray | None = None) -> Structure:
    """The structure with positions and cell multiplied by an orthogonal matrix, then shifted (Å)."""
    positions = structure.positions @ matrix.T + (0 if shift is None else shift)
    return replace(structure.copy(), positions=positions, cell=structure.cell @ matrix.T)


def symmetry_report(model: Potential, structure: Structure, *, seed: int = 0) -> SymmetryReport:
    """Compare a potential with its rotated, reflected, shifted, permuted and batched self.

    Args:
        model: the potential; float64 shows the true size of the errors.
        structure: any structure with at least two atoms.
        seed: of the random operations.
    """
    rng = np.random.default_rng(seed)
    reference = evaluate(model, structure)
    turn = random_rotation(seed)
    order = rng.permutation(structure.n_atoms)
    permuted = replace(
        structure.copy(), numbers=structure.numbers[order], positions=structure.positions[order], bonds=None
    )
    permuted.labels, permuted.arrays = {}, {}
    together = evaluate(model, structure, moved(structure, turn))
    n = structure.n_atoms
    if together.forces is not None:
        together.forces = together.forces[:n]
    together.energy, together.energies = together.energy[:1], together.energies[:n]
    return SymmetryReport(
        rotation=_distance(evaluate(model, moved(structure, turn)), reference, turn),
        reflection=_distance(evaluate(model, moved(structure, -turn)), reference, -turn),
        translation=_distance(evaluate(model, moved(structure, np.eye(3), rng.normal(size=3))), reference),
        permutation=_distance(evaluate(model, permuted), reference, order=order),
        batch=_distance(together, reference),
    )


def _distance(
    found: Prediction,
    reference: Prediction,
    matrix: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> float:
    """Largest error of energy and forces relative to the size of either."""
    if found.forces is None or reference.forces is None:
        raise ValueError("the symmetry report needs predictions with forces")
    forces = reference.forces.double()
    if matrix is not None:
        forces = forces @ torch.from_numpy(matrix.T.copy())
    if order is not None:
        forces = forces[torch.from_numpy(order)]
    force_error = (found.forces.double() - forces).abs().max() / forces.abs().max().clamp(min=1e-30)
    energy_scale = reference.energies.abs().max() * reference.energies.numel()
    energy_error = (found.energy[0] - reference.energy[0]).abs() / energy_scale.clamp(min=1e-30)
    return max(float(force_error), float(energy_error))
