"""`run_md`: a simulation with its files: trajectory, thermo log, state to resume from, last good frame."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.errors import UserError
from .calculator import as_calculator
from .ensembles import Settings
from .simulation import Hook, Simulation
from .state import State, read_state, write_state
from .thermo import Averages, ThermoLog
from .trajectory import Trajectory, check_format, open_trajectory, truncate
from .watch import Limits, SimulationStoppedError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

    from ..potentials.base import Potential

EVERY = 10
SAVE_EVERY = 100


@dataclass
class MDResult:
    """What a run gave.

    atoms: the end, with its calculator; step: steps done in all; steps_run: by this call; temperature_K
    (mean, standard deviation) and pressure_GPa over all records of the run; drift: slope of the conserved
    energy in meV/atom/ps (None for a single record); steps_per_second; seed; settings; files: by role.
    """

    atoms: Atoms
    step: int
    steps_run: int
    time_ps: float
    temperature_K: tuple[float, float]
    pressure_GPa: float | None
    drift: float | None
    steps_per_second: float
    seed: int
    settings: Settings
    files: dict[str, str]

    @property
    def ns_per_day(self) -> float:
        """Simulated ns in a day at this speed."""
        return self.steps_per_second * self.settings.timestep_fs * 86400e-6

    def to_dict(self) -> dict[str, Any]:
        """Plain nested keys with their units, for JSON."""
        mean, spread = self.temperature_K
        return {
            "steps": self.step,
            "steps_run": self.steps_run,
            "time": {"value": self.time_ps, "unit": "ps"},
            "temperature": {"mean": mean, "std": spread, "unit": "K"},
            "pressure": {"mean": self.pressure_GPa, "unit": "GPa"},
            "drift": {"value": self.drift, "unit": "meV/atom/ps"},
            "speed": {"steps_per_second": self.steps_per_second, "ns_per_day": self.ns_per_day},
            "seed": self.seed,
            "settings": self.settings.to_dict(),
            "files": self.files,
        }


@dataclass(frozen=True)
class Files:
    """Names of a run's files, all beside the trajectory."""

    trajectory: Path
    thermo: Path
    state: Path
    stopped: Path

    @classmethod
    def beside(cls, output: str | PathLike[str]) -> Files:
        """run.thermo.csv, run.state.safetensors and run.stopped.extxyz go with `run.extxyz`."""
        path = Path(output)
        check_format(path)
        endings = (".thermo.csv", ".state.safetensors", ".stopped.extxyz")
        return cls(path, *(path.with_name(path.stem + ending) for ending in endings))

    def all(self) -> tuple[Path, ...]:
        """Every file."""
        return (self.trajectory, self.thermo, self.state, self.stopped)

    def clear(self, force: bool) -> None:
        """Make room for a new run. Raises UserError when files exist and `force` is False."""
        present = [path for path in self.all() if path.exists()]
        if present and not force:
            raise UserError(
                f"{', '.join(map(str, present))} exist(s) already: choose another name, continue the run "
                "with --resume, or replace it with --force"
            )
        for path in present:
            path.unlink()
        self.trajectory.parent.mkdir(parents=True, exist_ok=True)


def run_md(
    atoms: Atoms,
    model: Potential | BaseCalculator | str | PathLike[str],
    *,
    steps: int,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    every: int | None = None,
    save_every: int = SAVE_EVERY,
    seed: int | None = None,
    limits: Limits | None = None,
    hooks: Iterable[tuple[Hook, int]] = (),
    progress: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    allow_nonconservative: bool = False,
    **settings: Any,
) -> MDResult:
    """Run molecular dynamics.

    Arguments:
        atoms: the start (unchanged); its momenta are used where it has any, else drawn.
        model: name, path, `Potential`, or any ASE calculator.
        steps: steps of the whole run; with `resume` those already done count.
        output: trajectory to write (.extxyz, .traj, .h5); other files lie beside it, see `Files`. None: no
            files.
        resume: go on from the saved state; the result is that of a run that never stopped.
        force: replace the files of an earlier run.
        every: steps between records (frame and row of the log); save_every: between saved states.
        seed, limits, allow_nonconservative: as in `Simulation`.
        hooks: pairs (function, interval), see `Simulation.attach`.
        settings: fields of `Settings`; when resuming only those that agree with the saved run.

    Raises: UserError for what cannot be run; SimulationStoppedError (a UserError) when the run leaves its
        limits, after writing the last good frame; KeyboardInterrupt after saving the state, when Ctrl-C or
        SIGTERM came.
    """
    if steps < 0:
        raise UserError(f"steps = {steps}: must not be negative")
    if save_every < 1 or (every is not None and every < 1):
        raise UserError(f"every = {every}, save_every = {save_every}: must be positive numbers of steps")
    files = None if output is None else Files.beside(output)
    if resume and files is None:
        raise UserError("resume needs the output of the run that is to go on")
    calculator = as_calculator(model, device=device, dtype=dtype)
    saved = read_state(files.state) if resume and files else None
    if saved is not None:
        _refuse_changes(saved, settings, seed, _identity(calculator))
        settings, seed = saved.meta["settings"], int(saved.meta["seed"])
        every = int(saved.meta["every"]) if every is None else every
    simulation = Simulation(
        atoms,
        calculator,
        Settings.from_dict(settings) if saved else Settings(**settings),
        seed=seed,
        limits=limits,
        allow_nonconservative=allow_nonconservative or saved is not None,
    )
    if saved is not None:
        simulation.restore(saved)
    elif files is not None:
        files.clear(force)
    recorder = Recorder(simulation, files, saved, EVERY if every is None else every)
    for function, interval in hooks:
        simulation.attach(function, interval)
    if files is not None:
        simulation.attach(lambda _: recorder.save(), save_every)
    return _drive(simulation, recorder, steps, progress)


class Recorder:
    """Writes the records of a simulation and keeps its averages; the files are optional."""

    def __init__(self, simulation: Simulation, files: Files | None, saved: State | None, every: int) -> None:
        self.simulation, self.files, self.every = simulation, files, every
        self.trajectory: Trajectory | None = None
        self.thermo: ThermoLog | None = None
        self.averages = Averages.from_dict(saved.meta["averages"]) if saved else Averages()
        if files is not None:
            if saved is None:
                self._write_state(0, 0)
            marks = saved.meta["marks"] if saved else (0, 0)
            truncate(files.thermo, marks[1])
            self.trajectory = open_trajectory(files.trajectory, marks[0])
            self.thermo = ThermoLog(files.thermo)
        if simulation.step == 0:
            self.record()
        simulation.attach(lambda _: self.record(), every)

    def record(self) -> None:
        """Take the present step into the averages and the files."""
        row = self.simulation.row()
        self.averages.add(row)
        if self.trajectory is not None and self.thermo is not None:
            self.trajectory.write(self.simulation.frame())
            self.thermo.write(row)

    def save(self) -> None:
        """Save the state after what was recorded is on the disk (the state of step 0 records nothing)."""
        if self.trajectory is not None and self.thermo is not None and self.simulation.step > 0:
            self._write_state(self.trajectory.mark(), self.thermo.mark())

    def _write_state(self, trajectory_mark: int, thermo_mark: int) -> None:
        if self.files is None:
            return
        state = self.simulation.state()
        state.meta |= {
            "marks": (trajectory_mark, thermo_mark),
            "every": self.every,
            "averages": self.averages.to_dict(),
            "model": _identity(self.simulation.atoms.calc),
        }
        write_state(self.files.state, state)

    def write_stopped(self, error: SimulationStoppedError) -> Path | None:
        """Write the last good frame and the one that failed; returns the file, None if there is none."""
        from ase.io import write

        frames = [frame for frame in (error.last_good, error.offending) if frame is not None]
        if self.files is None or not frames:
            return None
        for frame, role in zip(frames, ("last good", "stopped here"), strict=False):
            frame.info["role"] = role
        write(self.files.stopped, frames, format="extxyz")
        return self.files.stopped

    def close(self) -> None:
        """Close the files."""
        for file in (self.trajectory, self.thermo):
            if file is not None:
                file.close()


def _drive(simulation: Simulation, recorder: Recorder, steps: int, progress: bool) -> MDResult:
    """Run to the end, save, and sum up; the state is also saved on an interrupt, not on a failed step."""
    from tqdm import tqdm

    first, begin = simulation.step, time.perf_counter()
    with tqdm(total=steps, initial=first, unit=" steps", disable=None if progress else True, leave=False) as bar:
        simulation.attach(lambda _: bar.update())
        simulation.attach(lambda s: bar.set_postfix_str(f"{s.temperature():.0f} K", refresh=False), recorder.every)
        try:
            finished = simulation.run(steps)
            recorder.save()
        except SimulationStoppedError as error:
            path = recorder.write_stopped(error)
            if path is not None:
                error.args = (f"{error.args[0]}; the last good frame is in {path}",)
            raise
        finally:
            recorder.close()
    if not finished:
        raise KeyboardInterrupt
    return _result(simulation, recorder, simulation.step - first, time.perf_counter() - begin)


def _result(simulation: Simulation, recorder: Recorder, steps_run: int, seconds: float) -> MDResult:
    slope = recorder.averages.slope()
    files = recorder.files
    roles = ("trajectory", "thermo", "state")
    return MDResult(
        atoms=simulation.atoms,
        step=simulation.step,
        steps_run=steps_run,
        time_ps=simulation.time_fs() / 1000,
        temperature_K=recorder.averages.temperature(),
        pressure_GPa=recorder.averages.pressure(),
        drift=None if slope is None else slope * 1e6 / len(simulation.atoms),
        steps_per_second=steps_run / seconds if steps_run else 0.0,
        seed=simulation.seed,
        settings=simulation.settings,
        files={} if files is None else {role: str(getattr(files, role)) for role in roles},
    )


def _identity(calculator: BaseCalculator) -> dict[str, Any]:
    """What must be equal for two runs to be the same: dtype and weights of our models, the name of others."""
    if hasattr(calculator, "fingerprint"):
        return {"dtype": calculator.todict()["dtype"], "weights": calculator.fingerprint()}
    return {"calculator": calculator.name}


def _refuse_changes(saved: State, settings: dict[str, Any], seed: int | None, model: dict[str, Any]) -> None:
    """Raise UserError when what is asked now contradicts the run that is to be resumed."""
    before = {**saved.meta["settings"], "seed": saved.meta["seed"], **saved.meta["model"]}
    now = {**settings, **({} if seed is None else {"seed": seed}), **model}
    changed = [f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value]
    if changed:
        raise UserError(
            f"the run cannot be resumed with other settings: {'; '.join(changed)}. Leave them out, or start "
            "a new run from the last frame"
        )
