"""What a quantum chemist gets from a predicted Hamiltonian: orbitals, density, dipole, charges, a start of the SCF.

Needs PySCF. Energies in Eh, dipole in e·Å, charges in e; matrices in PySCF's orbital order.
Source: QH9 (arXiv 2306.09549), acceleration of the SCF.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...datasets.errors import UserError
from ...datasets.structure import Structure
from ...datasets.units import BOHR
from .base import HamiltonianModel
from .evaluate import level_of, predict_blocks
from .labels import check_molecule, guess_fock, mean_field, molecule, require_pyscf, run_scf, symmetric
from .layout import Blocks
from .level import Level
from .solve import (
    Frontier,
    Orbitals,
    atom_of_orbital,
    density_matrix,
    frontier,
    loewdin_charges,
    mulliken_charges,
    solve,
)
from .targets import from_target

if TYPE_CHECKING:
    import pyscf.dft.rks
    import pyscf.gto

BATCH = 16  # molecules of one network call
MARGIN = 3.5  # Å around the atoms of a cube
ELECTRONS = 1e-10  # largest error of the number of electrons of a predicted density


@dataclass(frozen=True)
class Prediction:
    """A predicted Hamiltonian and what follows from it without a self-consistent field."""

    structure: Structure
    level: Level
    hamiltonian: np.ndarray
    """``(n, n)`` Eh."""
    overlap: np.ndarray
    guess: np.ndarray
    """Fock matrix of the minimal atomic densities, to which a network predicts the difference."""
    orbitals: Orbitals
    density: np.ndarray
    """``(n, n)`` closed-shell density matrix of the predicted orbitals."""
    dipole: np.ndarray
    """``(3,)`` e·Å"""
    mulliken: np.ndarray
    loewdin: np.ndarray
    """``(n_atoms,)`` e"""
    mean_field: pyscf.dft.rks.RKS
    """PySCF's method for this molecule at this level, not run."""

    @property
    def n_electrons(self) -> int:
        """Number of electrons."""
        return int(self.structure.numbers.sum())

    @property
    def frontier(self) -> Frontier:
        """HOMO, LUMO and gap, Eh."""
        return frontier(self.orbitals, self.n_electrons)

    def energy(self) -> float:
        """Energy (Eh) of the predicted density by one Fock build: an upper bound of the converged one."""
        return float(self.mean_field.energy_tot(dm=self.density))


def predict_all(model: HamiltonianModel, structures: Sequence[Structure]) -> Iterator[Prediction]:
    """Predictions of one molecule after the other.

    Raises:
        UserError: no PySCF, a molecule with charge, open shell or cell, or an element that the model does not know.
    """
    require_pyscf()
    level = level_of(model)
    for k, structure in enumerate(structures):
        where = f"molecule {k}" if len(structures) > 1 else structure.formula
        check_molecule(structure, where)
        model.layout.require(structure.numbers.tolist(), where)
    for start in range(0, len(structures), BATCH):
        part = structures[start : start + BATCH]
        blocks = predict_blocks(model, [(s.numbers, s.positions) for s in part])
        for structure, found in zip(part, blocks, strict=True):
            yield _prediction(model, structure, level, found)


def _prediction(model: HamiltonianModel, structure: Structure, level: Level, blocks: Blocks) -> Prediction:
    mol = molecule(structure.numbers, structure.positions, level.basis)
    mf = mean_field(mol, level)
    guess = guess_fock(mf)
    matrix = model.layout.to_matrix(blocks, torch.from_numpy(structure.numbers)).numpy()
    hamiltonian = from_target(matrix, model.target, guess, symmetric(mf.get_ovlp()))
    return from_matrix(structure, level, hamiltonian, guess=guess, mf=mf)


def from_matrix(
    structure: Structure,
    level: Level,
    hamiltonian: np.ndarray,
    *,
    guess: np.ndarray | None = None,
    mf: pyscf.dft.rks.RKS | None = None,
) -> Prediction:
    """Orbitals, density, dipole and charges of any Hamiltonian of a molecule, predicted or converged.

    Raises:
        UserError: a matrix of another size, or with NaN.
    """
    mf = mf or mean_field(molecule(structure.numbers, structure.positions, level.basis), level)
    guess = guess_fock(mf) if guess is None else guess
    overlap = symmetric(mf.get_ovlp())
    orbitals = solve(hamiltonian, overlap)
    n_electrons = int(structure.numbers.sum())
    density = density_matrix(orbitals, n_electrons)
    found = float(np.einsum("ij,ji->", density, overlap))
    if abs(found - n_electrons) > ELECTRONS * max(1, n_electrons):
        raise UserError(f"{structure.formula}: the predicted density holds {found:.6f} of {n_electrons} electrons")
    atoms = atom_of_orbital([int(b - a) for _, _, a, b in mf.mol.aoslice_by_atom()])
    dipole = mf.dip_moment(mf.mol, density, unit="AU", verbose=0) * BOHR
    return Prediction(
        structure,
        level,
        symmetric(hamiltonian),
        overlap,
        guess,
        orbitals,
        density,
        np.asarray(dipole),
        mulliken_charges(density, overlap, structure.numbers, atoms),
        loewdin_charges(density, overlap, structure.numbers, atoms),
        mf,
    )


@dataclass(frozen=True)
class Convergence:
    """Cycles of the same SCF from several starts; energies in Eh."""

    cycles: dict[str, int]
    """Start ("predicted", "minao", "1e") -> cycles."""
    energies: dict[str, float]
    converged: dict[str, bool]
    first_energy: float
    """Of the predicted density, before the SCF."""

    @property
    def ratios(self) -> dict[str, float]:
        """Cycles from the prediction / cycles from each other start."""
        others = [start for start in self.cycles if start != "predicted"]
        return {start: self.cycles["predicted"] / self.cycles[start] for start in others}

    @property
    def spread(self) -> float:
        """Largest difference of the converged energies, Eh."""
        return max(self.energies.values()) - min(self.energies.values())


def converge(prediction: Prediction, *, conv_tol: float = 1e-9, starts: Sequence[str] = ("minao", "1e")) -> Convergence:
    """Run PySCF's SCF from the predicted density and from PySCF's own guesses; DIIS space 8, PySCF's thresholds.

    Args:
        prediction: of a molecule.
        conv_tol: convergence threshold of the energy, Eh; that of the gradient is its root.
        starts: PySCF's guesses to compare with.
    """
    runs: dict[str, np.ndarray] = {"predicted": prediction.density}
    mf = prediction.mean_field
    for start in starts:
        runs[start] = np.asarray(mf.get_init_guess(mf.mol, key=start))
    mf.conv_tol, mf.conv_tol_grad, mf.diis_space = conv_tol, None, 8
    cycles, energies, converged = {}, {}, {}
    for start, density in runs.items():
        cycles[start] = run_scf(mf, density)
        energies[start], converged[start] = float(mf.e_tot), bool(mf.converged)
    return Convergence(cycles, energies, converged, prediction.energy())


def density_of_states(energies: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    """States per unit of energy on a grid: every doubly degenerate orbital as a Gaussian of this width (same unit)."""
    scaled = (grid[:, None] - energies[None, :]) / width
    return 2 * np.exp(-0.5 * scaled**2).sum(1) / (width * np.sqrt(2 * np.pi))


def orbital_number(text: str, n_electrons: int, n_orbitals: int) -> int:
    """Index of an orbital from "homo", "lumo", "homo-1", "lumo+2" or its number, counted from 1.

    Raises:
        UserError: none of these, or no such orbital.
    """
    name = text.strip().lower()
    base = {"homo": n_electrons // 2 - 1, "lumo": n_electrons // 2}
    try:
        found = base[name[:4]] + int(name[4:] or 0) if name[:4] in base else int(name) - 1
    except ValueError:
        raise UserError(f"orbital {text!r}: write homo, lumo, homo-1, lumo+2 or a number from 1") from None
    if not 0 <= found < n_orbitals:
        raise UserError(f"orbital {text!r} is none of the {n_orbitals} of this molecule")
    return found


def write_cube(path: Any, prediction: Prediction, orbital: int, *, spacing: float = 0.2) -> None:
    """Write an orbital to a cube file.

    Args:
        path: file to write.
        prediction: of a molecule.
        orbital: index, from 0.
        spacing: of the grid, Å.
    """
    from pyscf.tools import cubegen

    cubegen.orbital(
        prediction.mean_field.mol,
        str(path),
        prediction.orbitals.coefficients[:, orbital],
        resolution=spacing / BOHR,
        margin=MARGIN / BOHR,
    )
