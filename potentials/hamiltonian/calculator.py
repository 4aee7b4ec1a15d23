"""ASE calculator on predicted densities: one Fock build per step, or an SCF that starts from the prediction."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import CalculationFailed, all_changes
from ase.calculators.calculator import Calculator as AseCalculator

from ...datasets.structure import Structure
from ...datasets.units import BOHR, HARTREE
from .base import HamiltonianModel
from .labels import run_scf
from .scf import Prediction, predict_all

if TYPE_CHECKING:
    from ase import Atoms


class DensityCalculator(AseCalculator):
    """Kohn-Sham energies, forces, dipoles and Mulliken charges of neutral closed-shell molecules from a prediction.

    Without SCF the energy is that of the predicted density: an upper bound of the converged one, off by the square of
    the density's error. Forces are the gradient of PySCF for the orbitals of one Fock build from that density; they
    leave out how the density answers, so they are off by the density's error, and are not exactly the gradient of the
    energy: good for a relaxation, not for NVE. With SCF both are exact, and the prediction saves cycles.

    Arguments:
        model: a shipped model's name, the path of a checkpoint, or a network.
        scf: converge the density.
        conv_tol: energy threshold of the SCF, Eh.
        device: of the network, when it is loaded here.

    Raises UserError for molecules that the model does not cover, `CalculationFailed` when the SCF does not converge.
    """

    implemented_properties = ["energy", "free_energy", "forces", "dipole", "charges"]  # noqa: RUF012 (ASE's form)

    def __init__(
        self,
        model: HamiltonianModel | str | PathLike[str],
        *,
        scf: bool = False,
        conv_tol: float = 1e-9,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        from . import load

        self.model = model if isinstance(model, HamiltonianModel) else load(str(model), device=device)
        self.scf, self.conv_tol = scf, conv_tol
        self.cycles = 0  # of the last SCF

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute; ASE calls it."""
        super().calculate(atoms, properties, system_changes)
        self.results = {}
        current: Any = self.atoms
        prediction = next(predict_all(self.model, [Structure.from_ase(current)]))
        mf, density = prediction.mean_field, prediction.density
        if self.scf:
            mf.conv_tol, mf.conv_tol_grad = self.conv_tol, None
            self.cycles = run_scf(mf, density)
            if not mf.converged:
                raise CalculationFailed(f"the SCF did not converge in {mf.max_cycle} cycles")
            density, energy = np.asarray(mf.make_rdm1()), mf.e_tot
        else:
            energy = _one_build(prediction)
        found: dict[str, Any] = {"energy": float(energy) * HARTREE, "free_energy": float(energy) * HARTREE}
        if "forces" in (properties or []):
            found["forces"] = -np.asarray(mf.nuc_grad_method().kernel()) * HARTREE / BOHR
        _, charges = mf.mulliken_pop(mf.mol, density, prediction.overlap, verbose=0)
        found["charges"] = np.asarray(charges)
        found["dipole"] = np.asarray(mf.dip_moment(mf.mol, density, unit="AU", verbose=0)) * BOHR
        self.results = found


def _one_build(prediction: Prediction) -> float:
    """Energy (Eh) of the predicted density; leaves in the method the orbitals of its Fock matrix, for the gradient."""
    mf = prediction.mean_field
    potential = mf.get_veff(mf.mol, prediction.density)
    energy = mf.energy_tot(dm=prediction.density, vhf=potential)
    fock = mf.get_hcore() + potential
    mf.mo_energy, mf.mo_coeff = mf.eig(np.asarray(fock), prediction.overlap)
    mf.mo_occ = mf.get_occ(mf.mo_energy, mf.mo_coeff)
    mf.e_tot, mf.converged = energy, True
    return float(energy)
