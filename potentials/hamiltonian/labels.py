"""Hamiltonian labels by PySCF: restricted Kohn-Sham Fock matrix, overlap and initial guess of one molecule.

The guess is the Fock matrix of the superposed minimal atomic densities (`minao`) at the same functional, basis and
grid; networks learn the difference to it. Source: SPHNet (arXiv 2502.01171); settings of QH9 (arXiv 2306.09549).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.elements import symbol
from ...datasets.errors import UserError
from ...datasets.structure import Structure
from ...datasets.units import BOHR, HARTREE
from .layout import OrbitalLayout
from .level import Level
from .solve import density_matrix, solve
from .store import Label

if TYPE_CHECKING:
    import pyscf.dft.rks
    import pyscf.gto


MAX_CYCLE = 100


class LabelError(UserError):
    """A molecule that gets no label; the text says why."""


def require_pyscf() -> None:
    """Check that PySCF is there.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    try:
        import pyscf  # noqa: F401
    except ImportError:
        raise UserError("PySCF is not installed: pip install 'tesseral[hamiltonian]'") from None


def resolve(functional: str) -> str:
    """What a functional's name means to this PySCF: "1 xc:402" or "0.2 HF + 0.08 xc:1 + ...".

    Raises:
        UserError: PySCF knows no such functional.
    """
    from pyscf.dft import libxc

    try:
        (exchange, _, omega), components = libxc.parse_xc(functional)
    except (KeyError, ValueError) as error:
        raise UserError(f"PySCF knows no functional {functional!r} ({str(error).splitlines()[0]})") from None
    terms = [f"{exchange:g} HF"] if exchange else []
    terms += [f"{omega:g} omega"] if omega else []
    terms += [f"{weight:g} xc:{int(number)}" for number, weight in sorted(components)]
    if not terms:
        raise UserError(f"functional {functional!r} is empty")
    return " + ".join(terms)


def level_of_theory(functional: str, basis: str, grid_level: int = 3) -> Level:
    """The level that this PySCF computes under these names.

    Raises:
        UserError: no PySCF, no such functional, or a grid level outside 0..9.
    """
    require_pyscf()
    import pyscf

    if not 0 <= grid_level <= 9:
        raise UserError(f"grid level {grid_level}: PySCF has 0 to 9")
    return Level(functional, resolve(functional), basis, grid_level, f"PySCF {pyscf.__version__}")


def shells_of(basis: str, elements: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """Degrees of the shells of each element in PySCF's order.

    Raises:
        UserError: PySCF has no such basis, or not for that element.
    """
    shells = {}
    for z in elements:
        mol = _molecule([(int(z), (0.0, 0.0, 0.0))], basis, spin=int(z) % 2)
        shells[int(z)] = tuple(mol.bas_angular(i) for i in range(mol.nbas) for _ in range(mol.bas_nctr(i)))
    return shells


def layout_of(basis: str, elements: Iterable[int]) -> OrbitalLayout:
    """Orbital layout of any basis that PySCF knows."""
    require_pyscf()
    return OrbitalLayout.from_mapping(basis, shells_of(basis, elements))


def _molecule(atoms: list[tuple[int, tuple[float, ...]]], basis: str, spin: int = 0) -> pyscf.gto.Mole:
    import warnings

    from pyscf import gto
    from pyscf.lib.exceptions import BasisNotFoundError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PySCF's advice to install another catalogue of basis sets
            return gto.M(atom=atoms, basis=basis, spin=spin, unit="Angstrom", verbose=0)
    except (BasisNotFoundError, KeyError) as error:
        names = ", ".join(sorted({symbol(z) for z, _ in atoms}))
        reason = " ".join(str(error).split())
        raise UserError(f"PySCF has no basis {basis!r} for {names} ({reason})") from None


def molecule(numbers: np.ndarray, positions: np.ndarray, basis: str) -> pyscf.gto.Mole:
    """PySCF's molecule, neutral and closed-shell.

    Args:
        numbers: ``(n,)`` atomic numbers.
        positions: ``(n, 3)`` Å.
        basis: name of the basis set.

    Raises:
        LabelError: an odd number of electrons.
        UserError: the basis set lacks an element.
    """
    numbers = np.asarray(numbers)
    electrons = int(numbers.sum())
    if electrons % 2:
        raise LabelError(f"{electrons} electrons: an open shell, only neutral closed-shell molecules are covered")
    atoms = [(int(z), tuple(map(float, r))) for z, r in zip(numbers, positions, strict=True)]
    return _molecule(atoms, basis)


def check_molecule(structure: Structure, where: str = "") -> None:
    """Refuse what restricted Kohn-Sham of a neutral molecule does not describe.

    Raises:
        LabelError: charge, open shell, periodic cell or broken geometry.
    """
    where = where and f"{where}: "
    if structure.pbc.any():
        raise LabelError(f"{where}a periodic cell: Hamiltonians are of molecules only (remove the cell)")
    if structure.charge not in (None, 0.0):
        raise LabelError(f"{where}charge {structure.charge:+g}: only neutral molecules are covered")
    if structure.spin not in (None, 1):
        raise LabelError(f"{where}multiplicity {structure.spin}: only closed shells (multiplicity 1) are covered")
    if int(structure.numbers.sum()) % 2:
        raise LabelError(f"{where}{int(structure.numbers.sum())} electrons: an open shell, only closed ones are known")
    structure.validate(where.rstrip(": "))
    distances = np.linalg.norm(structure.positions[:, None] - structure.positions, axis=-1)
    np.fill_diagonal(distances, np.inf)
    if distances.min(initial=np.inf) < 0.3:
        raise LabelError(f"{where}two atoms are {distances.min():.3f} Å apart: not a molecule (positions in Å?)")


def mean_field(mol: pyscf.gto.Mole, level: Level, *, tight: bool = True) -> pyscf.dft.rks.RKS:
    """Restricted Kohn-Sham at this level, not yet run.

    Args:
        mol: the molecule.
        level: functional and grid.
        tight: converge energies to 1e-11 Eh and gradients to 1e-6, as for labels; else PySCF's own thresholds.

    Raises:
        UserError: this PySCF means another functional by the level's name.
    """
    from pyscf import dft

    from .grid import DenseIntegrator

    now = resolve(level.functional)
    if now != level.resolved:
        raise UserError(f"{level.functional!r} means {now} to this PySCF, the labels are of {level.resolved}")
    mf = dft.RKS(mol, xc=level.functional)
    mf._numint = DenseIntegrator()
    mf.grids.level = level.grid_level
    mf.init_guess = "minao"
    mf.chkfile = None
    if tight:
        mf.conv_tol, mf.conv_tol_grad, mf.max_cycle = 1e-11, 1e-6, MAX_CYCLE
    return mf


def guess_fock(mf: pyscf.dft.rks.RKS) -> np.ndarray:
    """Fock matrix ``(n, n)`` Eh of the superposed minimal atomic densities."""
    density = mf.get_init_guess(mf.mol, key="minao")
    return symmetric(mf.get_fock(dm=np.asarray(density)))


def symmetric(matrix: Any) -> np.ndarray:
    """The matrix without the rounding errors that break its symmetry."""
    plain = np.asarray(matrix, dtype=np.float64)
    return (plain + plain.T) / 2


def label(structure: Structure, level: Level, *, name: str = "", forces: bool = False) -> Label:
    """Converged Fock matrix, overlap, guess, orbital energies and energy of a molecule.

    Args:
        structure: a neutral closed-shell molecule.
        level: functional, basis, grid.
        name: kept in the label.
        forces: also compute forces, eV/Å.

    Raises:
        LabelError: no such molecule, or the SCF does not converge.
    """
    check_molecule(structure)
    start = time.perf_counter()
    mf = mean_field(molecule(structure.numbers, structure.positions, level.basis), level)
    guess = guess_fock(mf)
    cycles = run_scf(mf)
    if not mf.converged:
        raise LabelError(f"the SCF did not converge in {mf.max_cycle} cycles: no label")
    gradient = mf.nuc_grad_method().kernel() if forces else None
    return Label(
        name=name,
        numbers=structure.numbers,
        positions=structure.positions,
        hamiltonian=symmetric(mf.get_fock()),
        guess=guess,
        overlap=symmetric(mf.get_ovlp()),
        orbital_energies=np.asarray(mf.mo_energy),
        energy=float(mf.e_tot),
        forces=None if gradient is None else -np.asarray(gradient) * HARTREE / BOHR,
        cycles=cycles,
        seconds=time.perf_counter() - start,
    )


def run_scf(mf: pyscf.dft.rks.RKS, density: np.ndarray | None = None) -> int:
    """Run the SCF from a density matrix or PySCF's own guess; the number of cycles."""
    count = 0

    def one_more(_: dict[str, Any]) -> None:
        nonlocal count
        count += 1

    mf.callback = one_more
    mf.kernel(dm0=density)
    return count


def complete(known: Label, level: Level) -> Label:
    """A foreign label with the overlap and the guess added, which cost one Fock build instead of an SCF.

    A label that is complete already stays as it is.

    Raises:
        LabelError: the matrix does not have this basis' orbitals, or is not a Fock matrix of this level.
    """
    if all(part is not None for part in (known.hamiltonian, known.guess, known.overlap)):
        return known
    start = time.perf_counter()
    check_molecule(Structure(known.numbers, known.positions), known.name)
    mf = mean_field(molecule(known.numbers, known.positions, level.basis), level)
    if known.n_orbitals != mf.mol.nao:
        raise LabelError(
            f"{known.name or 'the label'}: a matrix of {known.n_orbitals} orbitals, "
            f"{level.basis} gives this molecule {mf.mol.nao}"
        )
    guess = guess_fock(mf)
    overlap = symmetric(mf.get_ovlp())
    _check_stored_overlap(known, overlap)
    matrix = known.hamiltonian
    if matrix is None and known.delta is not None:
        matrix = guess + known.delta.astype(np.float64)
    seconds = time.perf_counter() - start
    return replace(known, hamiltonian=matrix, guess=guess, overlap=overlap, delta=None, seconds=seconds)


def _check_stored_overlap(known: Label, overlap: np.ndarray) -> None:
    if known.overlap is None:
        return
    worst = float(np.abs(known.overlap - overlap).max())
    if worst > 1e-5:
        raise LabelError(
            f"{known.name or 'the label'}: the stored overlap differs from PySCF's by {worst:.1e} "
            "(other positions, units or orbital order)"
        )


def check_level(known: Label, level: Level) -> float:
    """Largest difference (Eh) between a label and the Fock matrix of its own density at this level.

    A converged label of this level gives less than 1e-4; another functional, basis or unit gives more than 1e-3.

    Raises:
        LabelError: more than 5e-4.
    """
    if known.hamiltonian is None:
        return 0.0
    mf = mean_field(molecule(known.numbers, known.positions, level.basis), level)
    solution = solve(known.hamiltonian, symmetric(mf.get_ovlp()))
    density = density_matrix(solution, int(known.numbers.sum()))
    worst = float(np.abs(symmetric(mf.get_fock(dm=density)) - known.hamiltonian).max())
    if worst > 5e-4:
        raise LabelError(
            f"{known.name or 'the label'}: not a converged Fock matrix of {level}: off by {worst * 1e3:.2f} mEh "
            "(another functional, basis, orbital order or unit)"
        )
    return worst
