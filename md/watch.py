"""Watching a simulation: stop with a reason when it leaves what is physical or what the model has learned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.domain import Domain, pair_name
from ..datasets.elements import COVALENT_RADII, symbol
from ..datasets.errors import UserError
from ..datasets.neighbors import SkinList

if TYPE_CHECKING:
    from ase import Atoms

COVALENT_FRACTION = 0.5  # of the sum of covalent radii: closer than any atoms come below some 10⁵ K


@dataclass(frozen=True)
class Limits:
    """Where a simulation is stopped.

    energy_change: eV per atom away from the potential energy at the start. temperature_K: of a single step;
    None: ten times the target, at least 5000 K. distance_slack: fraction of the shortest training distance of
    a pair that is still allowed. force_slack, neighbor_slack: likewise above the largest training force and
    neighbour count (below the fewest: divided by it). surroundings: also watch neighbour counts and forces
    (False: distances only).
    """

    energy_change: float = 3.0
    temperature_K: float | None = None
    distance_slack: float = 0.85
    force_slack: float = 3.0
    neighbor_slack: float = 1.5
    surroundings: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain names and values."""
        return asdict(self)


class SimulationStoppedError(UserError):
    """The simulation left its limits.

    Attributes: step; reason; last_good, the atoms at the last step that passed every check; offending, those
    that failed.
    """

    def __init__(self, reason: str, step: int, last_good: Atoms | None, offending: Atoms | None) -> None:
        super().__init__(f"stopped at step {step}: {reason}")
        self.reason, self.step, self.last_good, self.offending = reason, step, last_good, offending


class Watch:
    """Checks of one simulation, from limits, the model's domain (may be empty) and the target in K."""

    def __init__(self, limits: Limits, domain: Domain, temperature_K: float) -> None:
        self.limits, self.domain = limits, domain
        self.max_temperature = limits.temperature_K or max(5000.0, 10.0 * temperature_K)
        self.reference: float | None = None
        self._species: np.ndarray | None = None
        self._pairs: SkinList | None = None
        self._shell: SkinList | None = None

    def problem(self, atoms: Atoms, temperature: float) -> str | None:
        """What is wrong with this step, or None. The potential energy of the first call is the reference."""
        energy = atoms.get_potential_energy() / len(atoms)
        if self.reference is None:
            self.reference = energy
        change = energy - self.reference
        if not abs(change) <= self.limits.energy_change:
            return (
                f"the potential energy changed by {change:+.2f} eV/atom since the start (limit "
                f"{self.limits.energy_change:g}): take a shorter time step, relax the start first, or raise "
                "the limit"
            )
        if not temperature <= self.max_temperature:
            return (
                f"the temperature reached {temperature:.0f} K (limit {self.max_temperature:.0f} K): take a "
                "shorter time step, relax the start first, or raise the limit"
            )
        return self._too_close(atoms) or (self._unknown_surroundings(atoms) if self.limits.surroundings else None)

    def _too_close(self, atoms: Atoms) -> str | None:
        """A pair of atoms closer than the floor of its elements."""
        if self._species is None or self._pairs is None:
            elements, self._species = np.unique(atoms.numbers, return_inverse=True)
            self._floor = distance_floor(elements, self.domain, self.limits.distance_slack)
            self._pairs = SkinList(float(self._floor.max()), skin=1.0)
        positions, cell = atoms.positions, atoms.cell.array
        source, target, shifts = self._pairs.update(positions, cell, atoms.pbc)
        if len(source) == 0:
            return None
        lengths = np.linalg.norm(positions[source] - positions[target] + shifts @ cell, axis=1)
        margin = lengths - self._floor[self._species[source], self._species[target]]
        worst = int(margin.argmin())
        if margin[worst] >= 0:
            return None
        i, j = int(target[worst]), int(source[worst])
        pair = pair_name(int(atoms.numbers[i]), int(atoms.numbers[j]))
        known = self.domain.min_distance.get(pair)
        basis = f"shortest in training {known:.2f} Å" if known else "half the sum of the covalent radii"
        return (
            f"atoms {i} and {j} ({pair}) are {lengths[worst]:.2f} Å apart, closer than "
            f"{lengths[worst] - margin[worst]:.2f} Å ({basis}): outside the training domain; lower the "
            "temperature or the time step"
        )

    def _unknown_surroundings(self, atoms: Atoms) -> str | None:
        """An atom with far more or fewer neighbours, or under a far larger force, than any in training."""
        limit = self.domain.max_force
        norms = np.linalg.norm(atoms.get_forces(), axis=1)
        if limit and norms.max() > self.limits.force_slack * limit:
            atom = int(norms.argmax())
            return (
                f"the force on atom {atom} ({symbol(int(atoms.numbers[atom]))}) is {norms[atom]:.1f} eV/Å, the "
                f"largest in training was {limit:.1f}: outside the training domain; take a shorter time "
                "step or relax first"
            )
        if not self.domain.neighbors:
            return None
        if self._shell is None:
            self._shell = SkinList(self.domain.radius, skin=1.0)
            ranges = [self.domain.neighbors.get(symbol(int(z)), (0, 10**9)) for z in atoms.numbers]
            self._fewest, self._most = np.array(ranges).T
        target = self._shell.update(atoms.positions, atoms.cell.array, atoms.pbc)[1]
        count, slack = np.bincount(target, minlength=len(atoms)), self.limits.neighbor_slack
        strange = (count > slack * self._most) | (count < self._fewest / slack)
        if not strange.any():
            return None
        atom = int(strange.argmax())
        return (
            f"atom {atom} ({symbol(int(atoms.numbers[atom]))}) has {count[atom]} atoms within "
            f"{self.domain.radius:g} Å; in training it was {self._fewest[atom]} to {self._most[atom]}: "
            "outside the training domain; use a model trained on such surroundings, or switch this check off "
            "(surroundings=False, --any-surroundings)"
        )


def distance_floor(numbers: np.ndarray, domain: Domain, slack: float) -> np.ndarray:
    """Shortest distance allowed (k, k) in Å between the k elements `numbers`.

    `slack` times the training minimum of the pair, half the sum of the covalent radii where it is not known.
    """
    radii = COVALENT_RADII[numbers]
    floor = COVALENT_FRACTION * (radii[:, None] + radii[None, :])
    for i, first in enumerate(numbers):
        for j, second in enumerate(numbers):
            known = domain.min_distance.get(pair_name(int(first), int(second)))
            if known is not None:
                floor[i, j] = slack * known
    return floor
