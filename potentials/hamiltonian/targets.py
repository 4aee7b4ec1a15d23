"""What a network learns of a Hamiltonian H, with the guess G (Fock matrix of the minao densities) and the overlap S.

    full        H
    delta       H - G                                        as published for SPHNet
    orthogonal  S^(-1/2) (H - G) S^(-1/2)                    the difference in Löwdin's orthogonalised orbitals

An error E of "delta" is S^(-1/2) E S^(-1/2) in orthonormal orbitals: where the overlap has small eigenvalues, as
between diffuse functions of neighbours, it grows by their inverse, and the density of a matrix with a small mean error
can be worse than that of the guess. The error of "orthogonal" is the error there. Turns and reflections act on all of
them alike.
"""

from __future__ import annotations

import numpy as np

from ...datasets.errors import UserError
from .solve import FLOOR
from .store import Label


def root(overlap: np.ndarray, power: float) -> np.ndarray:
    """``S^power`` of a symmetric positive matrix, eigenvalues floored."""
    values, vectors = np.linalg.eigh(overlap)
    return (vectors * np.maximum(values, FLOOR) ** power) @ vectors.T


def to_target(label: Label, target: str) -> np.ndarray:
    """``(n, n)`` matrix to learn, from a label.

    Raises:
        UserError: the label lacks a part that this target needs.
    """
    matrix = label.hamiltonian if target == "full" else label.delta
    if matrix is None or (target == "orthogonal" and label.overlap is None):
        parts = {"full": "the Hamiltonian", "delta": "the difference to the guess"}
        raise UserError(f"label {label.name} lacks {parts.get(target, 'the overlap or the difference to the guess')}")
    if target != "orthogonal" or label.overlap is None:
        return matrix
    inverse = root(label.overlap, -0.5)
    return inverse @ matrix.astype(np.float64) @ inverse


def from_target(matrix: np.ndarray, target: str, guess: np.ndarray | None, overlap: np.ndarray | None) -> np.ndarray:
    """Hamiltonian ``(n, n)`` from what a network gives.

    Raises:
        UserError: guess or overlap are needed and not given.
    """
    if target == "full":
        return matrix
    if guess is None or (target == "orthogonal" and overlap is None):
        raise UserError("a Hamiltonian from a predicted difference needs the guess, and the overlap if orthogonal")
    if target == "orthogonal" and overlap is not None:
        half = root(overlap, 0.5)
        matrix = half @ matrix @ half
    return matrix + guess
