"""One simulation in memory: atoms, integrator, checks, hooks; its state can be taken out and put back."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator

from ..datasets.domain import Domain
from ..datasets.errors import UserError
from .ensembles import Settings, build, conserved_energy, internals, restore_internals
from .interrupt import deferred_interrupt
from .state import State
from .thermo import Row
from .velocities import degrees_of_freedom, draw_velocities, remove_drift, temperature
from .watch import Limits, SimulationStoppedError, Watch

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

KEPT_ARRAYS = ("numbers", "positions", "momenta", "masses", "tags", "initial_magmoms")
KEPT_INFO = ("charge", "spin")
RESULTS = ("energy", "forces", "stress")
Hook = Callable[["Simulation"], None]


class Simulation:
    """A molecular dynamics run.

    Arguments:
        atoms: the start; copied. Momenta that it has are kept, otherwise they are drawn at the temperature.
        calculator: any ASE calculator.
        settings: ensemble, temperature, time step …
        seed: of velocities and thermostat; None: drawn, and kept in `seed`.
        limits: where to stop; the model's training domain is read from its card.
        allow_nonconservative: run NVE with forces that are no gradient of the energy.

    Motion of the whole (drift; rotation of a molecule) is removed at the start wherever the integrator would
    keep it for ever. Attributes: atoms, settings, seed, step (steps done). Raises UserError for settings that
    do not fit the structure or the model.
    """

    def __init__(
        self,
        atoms: Atoms,
        calculator: BaseCalculator,
        settings: Settings,
        *,
        seed: int | None = None,
        limits: Limits | None = None,
        allow_nonconservative: bool = False,
    ) -> None:
        _refuse_nonconservative(calculator, settings, allow_nonconservative)
        self.settings = settings
        self.seed = secrets.randbits(32) if seed is None else int(seed)
        self.step = 0
        self._rng = np.random.default_rng(self.seed)
        self._hooks: list[tuple[Hook, int]] = []
        self.atoms = _plain_copy(atoms)
        self.atoms.calc = calculator
        if not self.atoms.has("momenta") or not self.atoms.get_momenta().any():
            draw_velocities(self.atoms, settings.temperature_K, self._rng)
        frozen = remove_drift(self.atoms) if settings.conserves_momentum else 0
        self.freedom = degrees_of_freedom(self.atoms, frozen)
        domain = Domain.from_card(getattr(getattr(calculator, "model", None), "card", None) or {})
        self.watch = Watch(limits or Limits(), domain, settings.temperature_K)
        self._start()

    def _start(self) -> None:
        """Build the integrator on the atoms as they are, check them, and note the conserved energy."""
        self._good: tuple[Any, ...] | None = None
        self._guarded(self._build)
        self._check()
        self.conserved_start = conserved_energy(self.dynamics, self.settings)

    def _build(self) -> None:
        self.dynamics = build(self.atoms, self.settings, self.freedom, self._rng)

    def attach(self, function: Hook, interval: int = 1) -> None:
        """Call `function(simulation)` after every `interval`-th step (counted from the start of the run)."""
        if interval < 1:
            raise UserError(f"an interval of {interval} steps was asked: it must be positive")
        self._hooks.append((function, interval))

    def run(self, until: int) -> bool:
        """Go on until `until` steps are done in all; False if Ctrl-C or SIGTERM came, after a whole step.

        Raises SimulationStoppedError when a step fails or leaves the limits; its hooks are then not called.
        """
        with deferred_interrupt() as interrupt:
            while self.step < until and not interrupt.requested:
                self._guarded(self.dynamics.step)
                self.step += 1
                self._check()
                for function, interval in self._hooks:
                    if self.step % interval == 0:
                        function(self)
        return not interrupt.requested

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Run one step; a failure of the model inside it becomes a stop with the last good frame."""
        try:
            action()
        except (CalculationFailed, UserError) as error:
            if self._good is None:
                raise
            raise SimulationStoppedError(str(error), self.step + 1, self.last_good(), None) from error

    def _check(self) -> None:
        """Stop when the present step fails a check; otherwise it is the last good one."""
        reason = self.watch.problem(self.atoms, self.temperature())
        if reason is not None:
            raise SimulationStoppedError(reason, self.step, self.last_good(), self.frame())
        atoms = self.atoms
        self._good = (
            self.step,
            atoms.positions.copy(),
            atoms.get_momenta(),
            atoms.cell.copy(),
            {k: v for k, v in atoms.calc.results.items() if k in RESULTS},
        )

    def temperature(self) -> float:
        """Kinetic temperature in K, of the degrees of freedom that can move."""
        return temperature(self.atoms, self.freedom)

    def time_fs(self) -> float:
        """Simulated time in fs."""
        return self.step * self.settings.timestep_fs

    def row(self) -> Row:
        """The thermodynamic record of this step."""
        atoms = self.atoms
        potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
        conserved = conserved_energy(self.dynamics, self.settings)
        pressure = None
        if atoms.pbc.all():
            try:
                stress = atoms.get_stress(voigt=False, include_ideal_gas=True)
                pressure = float(-np.trace(stress) / 3 / units.GPa)
            except PropertyNotImplementedError:
                pressure = None
        return Row(
            step=self.step,
            time=self.time_fs(),
            potential=potential,
            kinetic=kinetic,
            total=potential + kinetic,
            temperature=self.temperature(),
            pressure=pressure,
            volume=float(atoms.get_volume()) if atoms.pbc.all() else None,
            conserved=conserved,
            drift=(conserved - self.conserved_start) * 1000 / len(atoms),
        )

    def frame(self) -> Atoms:
        """A copy of this step with energy, forces and (three periodic axes) stress."""
        results = {k: v for k, v in self.atoms.calc.results.items() if k in RESULTS}
        return self._frame(self.step, self.atoms.positions, self.atoms.get_momenta(), self.atoms.cell, results)

    def last_good(self) -> Atoms | None:
        """The last step that passed every check, likewise; None before the first."""
        return None if self._good is None else self._frame(*self._good)

    def _frame(self, step: int, positions: Any, momenta: Any, cell: Any, results: dict[str, Any]) -> Atoms:
        frame = self.atoms.copy()
        frame.set_constraint()
        frame.set_positions(positions)
        frame.set_momenta(momenta)
        frame.set_cell(cell)
        frame.info.update(step=step, time_fs=step * self.settings.timestep_fs)
        frame.calc = SinglePointCalculator(frame, **results)
        return frame

    def state(self) -> State:
        """Everything that `restore` needs; to be called between steps."""
        atoms = self.atoms
        arrays = {
            "numbers": atoms.numbers,
            "positions": atoms.positions,
            "momenta": atoms.get_momenta(),
            "cell": atoms.cell.array,
            "pbc": atoms.pbc.astype(np.uint8),
        }
        own = internals(self.dynamics, self.settings)
        arrays |= {f"integrator/{name}": value for name, value in own.items()}
        meta = {
            "step": self.step,
            "seed": self.seed,
            "random": self._rng.bit_generator.state,
            "settings": self.settings.to_dict(),
            "freedom": self.freedom,
            "reference_energy": self.watch.reference,
            "conserved_start": self.conserved_start,
        }
        return State({name: value.copy() for name, value in arrays.items()}, meta)

    def restore(self, state: State) -> None:
        """Continue exactly where `state` was taken. Raises UserError when it belongs to another structure."""
        arrays, meta = state.arrays, state.meta
        same = np.array_equal(arrays["numbers"], self.atoms.numbers)
        if not same or not np.array_equal(arrays["pbc"].astype(bool), self.atoms.pbc):
            raise UserError(
                "the saved state belongs to another structure (other elements, order of atoms or periodic "
                "axes): give the structure that the run was started with"
            )
        self.atoms.set_cell(arrays["cell"])
        self.atoms.set_positions(arrays["positions"], apply_constraint=False)
        self.atoms.set_momenta(arrays["momenta"], apply_constraint=False)
        self.step, self.seed, self.freedom = int(meta["step"]), int(meta["seed"]), int(meta["freedom"])
        self._rng.bit_generator.state = meta["random"]
        self.watch.reference = float(meta["reference_energy"])
        self._start()
        prefix = "integrator/"
        own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        restore_internals(self.dynamics, self.settings, own)
        self.conserved_start = float(meta["conserved_start"])


def _plain_copy(atoms: Atoms) -> Atoms:
    """Geometry, momenta, masses, charge and spin; labels and results of elsewhere would go stale."""
    copy = atoms.copy()
    for name in set(copy.arrays) - set(KEPT_ARRAYS):
        del copy.arrays[name]
    copy.info = {key: value for key, value in copy.info.items() if key in KEPT_INFO}
    return copy


def _refuse_nonconservative(calculator: BaseCalculator, settings: Settings, allowed: bool) -> None:
    if settings.ensemble == "nve" and not getattr(calculator, "conservative", True) and not allowed:
        raise UserError(
            "this model's forces are no gradient of its energy, so NVE does not conserve energy; use nvt, or "
            "ask for it by name: allow_nonconservative=True (--allow-nonconservative)"
        )
