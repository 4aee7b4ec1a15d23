"""Finite differences against a potential's own forces and stress."""

from __future__ import annotations

import numpy as np

from ..datasets.structure import Structure
from ..potentials.base import Potential
from .symmetry import evaluate, moved

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def force_error(
    model: Potential, structure: Structure, *, step: float = 1e-3, components: int = 12, seed: int = 0
) -> float:
    """Largest |F - finite difference| (eV/Å) over random components, fourth-order central differences.

    Args:
        model: the potential; use float64.
        structure: the structure.
        step: Å.
        components: how many of the 3N components are tried.
        seed: which ones.
    """
    forces = evaluate(model, structure).forces
    if forces is None:
        raise ValueError("the potential gave no forces")
    chosen = np.random.default_rng(seed).permutation(3 * structure.n_atoms)[:components]

    def energy(atom: int, axis: int, by: float) -> float:
        shifted = structure.copy()
        shifted.positions[atom, axis] += by
        return float(evaluate(model, shifted).energy[0])

    errors = []
    for flat in chosen:
        atom, axis = divmod(int(flat), 3)
        numeric = -_derivative(lambda by, a=atom, k=axis: energy(a, k, by), step)
        errors.append(abs(numeric - float(forces[atom, axis])))
    return max(errors)


def stress_error(model: Potential, structure: Structure, *, step: float = 1e-4) -> float:
    """Largest |stress - finite difference over strain| (eV/Å³); the structure needs three periodic axes."""
    stress = evaluate(model, structure).stress
    if stress is None:
        raise ValueError("the structure has no stress: it needs three periodic axes")
    volume = abs(np.linalg.det(structure.cell))

    def energy(voigt: int, by: float) -> float:
        i, j = VOIGT[voigt]
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * by
        strain[j, i] += 0.5 * by
        return float(evaluate(model, moved(structure, np.eye(3) + strain)).energy[0])

    numeric = [_derivative(lambda by, k=k: energy(k, by), step) / volume for k in range(6)]
    return float(np.abs(np.array(numeric) - stress[0].double().numpy()).max())


def _derivative(f, step: float) -> float:  # type: ignore[no-untyped-def]
    """First derivative at 0 by the fourth-order central formula."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)
