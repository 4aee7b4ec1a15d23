"""The ensembles and their integrators: ASE's, with the right degrees of freedom and a state to restart from.

    nve                     velocity Verlet
    nvt  langevin           BAOAB (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102, 2013)
    nvt  nose-hoover        Nosé–Hoover chain (Martyna, Klein, Tuckerman, J. Chem. Phys. 97, 2635, 1992)
    nvt  bussi              velocity rescaling (Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101, 2007)
    npt  isotropic | full   volume or cell (Martyna, Tobias, Klein, J. Chem. Phys. 101, 4177, 1994)

ASE counts 3 N degrees of freedom in its thermostats. Where the momentum (and, for molecules, the angular
momentum) of the whole is conserved and was set to zero, that heats a small system by 3 N / f; here each
thermostat is told the true f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from ase.constraints import FixAtoms
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.nose_hoover_chain import (
    MTKNPT,
    IsotropicMTKNPT,
    NoseHooverChainNVT,
    NoseHooverChainThermostat,
)
from ase.md.verlet import VelocityVerlet

from ..datasets.errors import UserError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics

ENSEMBLES = ("nve", "nvt", "npt")
THERMOSTATS = ("langevin", "nose-hoover", "bussi")
BAROSTATS = ("isotropic", "full")
STOCHASTIC = ("langevin", "bussi")


@dataclass(frozen=True)
class Settings:
    """What is simulated; equal settings, start and seed give equal trajectories.

    ensemble "nve", "nvt" or "npt"; thermostat "langevin", "nose-hoover" or "bussi" (nvt only); barostat
    "isotropic" or "full" (npt only); temperature_K of the thermostat and of the velocities drawn at the
    start; pressure_GPa (npt); timestep_fs; thermostat_fs and barostat_fs: their time constants (Langevin: 1 /
    friction). Raises UserError for values that name no simulation.
    """

    ensemble: str = "nvt"
    thermostat: str = "langevin"
    barostat: str = "isotropic"
    temperature_K: float = 300.0
    pressure_GPa: float = 0.0
    timestep_fs: float = 1.0
    thermostat_fs: float = 100.0
    barostat_fs: float = 1000.0

    def __post_init__(self) -> None:
        for name, allowed in (("ensemble", ENSEMBLES), ("thermostat", THERMOSTATS), ("barostat", BAROSTATS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("timestep_fs", "thermostat_fs", "barostat_fs"):
            if not 0 < getattr(self, name) < np.inf:
                raise UserError(f"{name} = {getattr(self, name)}: must be a positive number of femtoseconds")
        if not 0 <= self.temperature_K < np.inf or (self.temperature_K == 0 and self.ensemble != "nve"):
            raise UserError(f"temperature_K = {self.temperature_K}: must be positive (0 is allowed in nve only)")
        if not np.isfinite(self.pressure_GPa):
            raise UserError(f"pressure_GPa = {self.pressure_GPa}: must be a number")

    @property
    def integrator(self) -> str:
        """The row of the table above that runs."""
        return {"nve": "nve", "nvt": self.thermostat, "npt": self.barostat}[self.ensemble]

    @property
    def conserves_momentum(self) -> bool:
        """Whether the integrator keeps the total momentum (Langevin's random forces do not)."""
        return self.integrator != "langevin"

    def to_dict(self) -> dict[str, Any]:
        """Plain names and values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of `to_dict`; unknown names are left out (a newer version may have written them)."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


class Langevin(LangevinBAOAB):
    """BAOAB Langevin dynamics that books the heat the bath gave, so that energy − heat is conserved."""

    transferred_energy = 0.0

    def _BAOAB_OU(self, *args: Any) -> None:  # noqa: N802 (ASE's name)
        before = self.atoms.get_kinetic_energy()
        super()._BAOAB_OU(*args)
        self.transferred_energy += self.atoms.get_kinetic_energy() - before


def build(atoms: Atoms, settings: Settings, freedom: int, rng: np.random.Generator) -> Any:
    """The integrator for atoms with a calculator; `freedom`: degrees of freedom that are thermostatted.

    Raises UserError for a cell or constraints that the ensemble cannot handle.
    """
    _check_constraints(atoms, settings)
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise UserError(f"npt needs three periodic axes, the structure has pbc {atoms.pbc.tolist()}: use nvt or nve")
    return _BUILDERS[settings.integrator](atoms, settings, freedom, rng)


def _check_constraints(atoms: Atoms, settings: Settings) -> None:
    moving = [type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)]
    if atoms.constraints and settings.ensemble == "npt":
        raise UserError("npt cannot keep atoms fixed while the cell changes: remove the constraints, or use nvt")
    if moving and settings.integrator not in ("nve", "bussi"):
        raise UserError(
            f"{settings.integrator} knows no constraint but FixAtoms, the structure has {', '.join(moving)}: "
            "use --thermostat bussi"
        )


def _nve(atoms: Atoms, settings: Settings, freedom: int, rng: np.random.Generator) -> MolecularDynamics:
    return VelocityVerlet(atoms, settings.timestep_fs * units.fs)


def _langevin(atoms: Atoms, settings: Settings, freedom: int, rng: np.random.Generator) -> MolecularDynamics:
    return Langevin(
        atoms,
        settings.timestep_fs * units.fs,
        temperature_K=settings.temperature_K,
        T_tau=settings.thermostat_fs * units.fs,
        hydrostatic=True,  # without external stress this only picks the scalar branch of the friction
        rng=rng,
    )


def _bussi(atoms: Atoms, settings: Settings, freedom: int, rng: np.random.Generator) -> MolecularDynamics:
    if atoms.get_kinetic_energy() <= 0:
        raise UserError("bussi rescales velocities and the structure has none: let them be drawn, or use langevin")
    dynamics = Bussi(
        atoms,
        settings.timestep_fs * units.fs,
        settings.temperature_K,
        settings.thermostat_fs * units.fs,
        rng=rng,
    )
    dynamics.ndof = freedom
    dynamics.target_kinetic_energy = 0.5 * dynamics.temp * freedom
    return dynamics


def _nose_hoover(atoms: Atoms, settings: Settings, freedom: int, rng: np.random.Generator) -> MolecularDynamics:
    dynamics = NoseHooverChainNVT(
        atoms,
        settings.timestep_fs * units.fs,
        temperature_K=settings.temperature_K,
        tdamp=settings.thermostat_fs * units.fs,
    )
    dynamics._thermostat = _chain(dynamics, settings, freedom)
    return dynamics


def _mtk(atoms: Atoms, settings: Settings, freedom: int, rng: np.random.Generator) -> MolecularDynamics:
    kind = IsotropicMTKNPT if settings.barostat == "isotropic" else MTKNPT
    dynamics = kind(
        atoms,
        settings.timestep_fs * units.fs,
        temperature_K=settings.temperature_K,
        pressure_au=settings.pressure_GPa * units.GPa,
        tdamp=settings.thermostat_fs * units.fs,
        pdamp=settings.barostat_fs * units.fs,
    )
    dynamics._thermostat = _chain(dynamics, settings, freedom)
    dynamics._num_atoms_global = freedom / 3
    return dynamics


def _chain(dynamics: MolecularDynamics, settings: Settings, freedom: int) -> NoseHooverChainThermostat:
    """A Nosé–Hoover chain for `freedom` degrees of freedom, which ASE writes as 3 × a number of atoms."""
    return NoseHooverChainThermostat(
        num_atoms_global=freedom / 3,  # type: ignore[arg-type]
        masses=dynamics.masses,
        temperature_K=settings.temperature_K,
        tdamp=settings.thermostat_fs * units.fs,
    )


_BUILDERS: dict[str, Callable[..., MolecularDynamics]] = {
    "nve": _nve,
    "langevin": _langevin,
    "bussi": _bussi,
    "nose-hoover": _nose_hoover,
    "isotropic": _mtk,
    "full": _mtk,
}

_CHAIN = ("_thermostat._eta", "_thermostat._p_eta")
_BAROSTAT = ("_barostat._xi", "_barostat._p_xi")
INTERNALS: dict[str, tuple[str, ...]] = {
    "nve": (),
    "langevin": ("transferred_energy",),
    "bussi": ("transferred_energy",),
    "nose-hoover": _CHAIN,
    "isotropic": (*_CHAIN, *_BAROSTAT, "_eps", "_p_eps", "_cell0", "_volume0"),
    "full": (*_CHAIN, *_BAROSTAT, "_p_g"),
}
"""What each integrator remembers beyond positions, momenta, cell and random numbers."""


def internals(dynamics: MolecularDynamics, settings: Settings) -> dict[str, np.ndarray]:
    """The integrator's own variables as float64 arrays, by name."""
    return {path: np.array(_walk(dynamics, path), dtype=np.float64) for path in INTERNALS[settings.integrator]}


def restore_internals(dynamics: MolecularDynamics, settings: Settings, values: dict[str, np.ndarray]) -> None:
    """Put back what `internals` returned, into an integrator built on the restored atoms."""
    for path in INTERNALS[settings.integrator]:
        *owners, name = path.split(".")
        value = np.array(values[path], dtype=np.float64)
        setattr(_walk(dynamics, ".".join(owners)), name, value if value.ndim else float(value))


def _walk(owner: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        owner = getattr(owner, name)
    return owner


def conserved_energy(dynamics: Any, settings: Settings) -> float:
    """The quantity (eV) whose drift measures the integration error in this ensemble."""
    if settings.integrator in ("nve", *STOCHASTIC):
        return float(dynamics.atoms.get_total_energy() - getattr(dynamics, "transferred_energy", 0.0))
    return float(dynamics.get_conserved_energy())
