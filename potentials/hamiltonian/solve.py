"""From a Hamiltonian to orbitals: the eigenproblem H C = S C ε in float64, densities, and how far two solutions are.

Everything is in Eh and in PySCF's orbital order. Source: QH9 (arXiv 2306.09549), metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...datasets.errors import UserError

FLOOR = 1e-8  # eigenvalues of the overlap below it count as it: nearly dependent functions


@dataclass(frozen=True)
class Orbitals:
    """Solution of H C = S C ε."""

    energies: np.ndarray
    """``(n,)`` ascending, Eh."""
    coefficients: np.ndarray
    """``(n, n)``, one orbital per column, C^T S C = 1."""


def solve(hamiltonian: np.ndarray, overlap: np.ndarray) -> Orbitals:
    """Orbital energies and coefficients by X = S^(-1/2), eigenvalues of S floored at 1e-8.

    Raises:
        UserError: matrices of different shapes, or with NaN.
    """
    h, s = (np.asarray(m, dtype=np.float64) for m in (hamiltonian, overlap))
    if h.shape != s.shape or h.ndim != 2 or h.shape[0] != h.shape[1]:
        raise UserError(f"Hamiltonian {h.shape} and overlap {s.shape} must be square and of one size")
    if not (np.isfinite(h).all() and np.isfinite(s).all()):
        raise UserError("the Hamiltonian or the overlap contains NaN or infinite elements")
    values, vectors = np.linalg.eigh((s + s.T) / 2)
    x = (vectors / np.sqrt(np.maximum(values, FLOOR))) @ vectors.T
    energies, rotated = np.linalg.eigh(x @ ((h + h.T) / 2) @ x)
    return Orbitals(energies, x @ rotated)


def n_occupied(n_electrons: int) -> int:
    """Number of doubly occupied orbitals.

    Raises:
        UserError: an odd number of electrons.
    """
    if n_electrons % 2:
        raise UserError(f"{n_electrons} electrons: an open shell, only closed shells are covered")
    return n_electrons // 2


def density_matrix(orbitals: Orbitals, n_electrons: int) -> np.ndarray:
    """Closed-shell density ``(n, n)``: twice the projector on the occupied orbitals."""
    occupied = orbitals.coefficients[:, : n_occupied(n_electrons)]
    return 2 * occupied @ occupied.T


@dataclass(frozen=True)
class Frontier:
    """Frontier orbital energies, Eh."""

    homo: float
    lumo: float

    @property
    def gap(self) -> float:
        """LUMO - HOMO."""
        return self.lumo - self.homo


def frontier(orbitals: Orbitals, n_electrons: int) -> Frontier:
    """HOMO and LUMO energy; the LUMO is NaN where all orbitals are occupied."""
    n = n_occupied(n_electrons)
    lumo = orbitals.energies[n] if n < len(orbitals.energies) else np.nan
    return Frontier(float(orbitals.energies[n - 1]), float(lumo))


def orbital_errors(
    predicted: np.ndarray, reference: np.ndarray, overlap: np.ndarray, n_electrons: int
) -> dict[str, float]:
    """How far the orbitals of a predicted Hamiltonian are from those of the reference.

    Returns:
        "orbital_energies": mean absolute error of the occupied ones (Eh); "homo", "lumo", "gap": absolute errors (Eh);
        "similarity": mean |cos| of the occupied coefficient vectors, as published (without the overlap; meaningless for
        degenerate orbitals); "subspace": S-projected overlap of the occupied spaces, 1 for the same density.
    """
    ours, theirs = solve(predicted, overlap), solve(reference, overlap)
    n = n_occupied(n_electrons)
    a, b = ours.coefficients[:, :n], theirs.coefficients[:, :n]
    cosines = np.abs((a * b).sum(0)) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    mine, other = frontier(ours, n_electrons), frontier(theirs, n_electrons)
    return {
        "orbital_energies": float(np.abs(ours.energies[:n] - theirs.energies[:n]).mean()),
        "homo": abs(mine.homo - other.homo),
        "lumo": abs(mine.lumo - other.lumo),
        "gap": abs(mine.gap - other.gap),
        "similarity": float(cosines.mean()),
        "subspace": float(np.square(a.T @ overlap @ b).sum() / n),
    }


def atom_of_orbital(n_orbitals: list[int]) -> np.ndarray:
    """Number of the atom of each orbital, from the numbers of orbitals of the atoms."""
    return np.repeat(np.arange(len(n_orbitals)), n_orbitals)


def mulliken_charges(density: np.ndarray, overlap: np.ndarray, numbers: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Charges ``(n_atoms,)`` e: nuclear charge minus the populations (D S)_kk of the atom's orbitals."""
    populations = np.einsum("ij,ji->i", density, overlap)
    return numbers - np.bincount(atoms, populations, minlength=len(numbers))


def loewdin_charges(density: np.ndarray, overlap: np.ndarray, numbers: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Charges ``(n_atoms,)`` e from the populations of symmetrically orthogonalised orbitals, (S^½ D S^½)_kk."""
    values, vectors = np.linalg.eigh(overlap)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    populations = np.einsum("ij,jk,ki->i", root, density, root)
    return numbers - np.bincount(atoms, populations, minlength=len(numbers))
