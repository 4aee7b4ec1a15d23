"""Initial momenta, drift and rotation of the whole, and the degrees of freedom that are left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase import units

from ..datasets.errors import UserError

if TYPE_CHECKING:
    from ase import Atoms

MOMENT_TOLERANCE = 1e-6  # of the largest moment of inertia: below it an axis is one of a linear molecule


def draw_velocities(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Set Maxwell–Boltzmann momenta p = sqrt(m k T) ξ, ξ standard normal, in place; constraints hold."""
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature_K)
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * spread[:, None])


def remove_drift(atoms: Atoms) -> int:
    """Take the motion of the whole out of the momenta, in place; returns the degrees of freedom frozen.

    Always the drift of the centre of mass (3); without periodic axes also the rotation about it (3, 2 for a
    linear molecule, 0 for an atom). Atoms with constraints are left alone (0): their centre is not free.
    """
    if atoms.constraints:
        return 0
    masses = atoms.get_masses()[:, None]
    momenta = atoms.get_momenta()
    velocities = momenta / masses - momenta.sum(axis=0) / masses.sum()
    frozen = 3
    if not atoms.pbc.any():
        arms = atoms.positions - (masses * atoms.positions).sum(axis=0) / masses.sum()
        inertia = (masses[:, :, None] * (_squares(arms) - arms[:, :, None] * arms[:, None, :])).sum(axis=0)
        moments, axes = np.linalg.eigh(inertia)
        turning = axes[:, moments > MOMENT_TOLERANCE * max(moments.max(), 1e-12)]
        angular = np.cross(arms, masses * velocities).sum(axis=0)
        rate = turning @ np.linalg.solve(turning.T @ inertia @ turning, turning.T @ angular)
        velocities -= np.cross(rate, arms)
        frozen += turning.shape[1]
    atoms.set_momenta(masses * velocities)
    return frozen


def _squares(arms: np.ndarray) -> np.ndarray:
    """|r|² times the unit matrix for each arm: (n, 3, 3)."""
    return np.square(arms).sum(axis=1)[:, None, None] * np.eye(3)


def degrees_of_freedom(atoms: Atoms, frozen: int) -> int:
    """3 per atom, less what constraints and `frozen` take. Raises UserError when none is left."""
    left = int(atoms.get_number_of_degrees_of_freedom()) - frozen
    if left < 1:
        raise UserError(
            f"no degree of freedom is left to move: {len(atoms)} atom(s), {len(atoms.constraints)} "
            "constraint(s), drift and rotation removed; use the Langevin thermostat, which keeps the drift, "
            "or free some atoms"
        )
    return left


def temperature(atoms: Atoms, freedom: int) -> float:
    """Kinetic temperature 2 K / (k f) in K for f degrees of freedom."""
    return float(2.0 * atoms.get_kinetic_energy() / (units.kB * freedom))
