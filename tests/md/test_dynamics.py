"""Simulations with files: exact resume, kill -9, interrupts, stops, records."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import read

from tesseral.datasets.domain import Domain, measure_domain
from tesseral.datasets.errors import UserError
from tesseral.datasets.store import Store
from tesseral.md.calculator import Calculator
from tesseral.md.dynamics import Files, run_md
from tesseral.md.ensembles import Settings
from tesseral.md.simulation import Simulation
from tesseral.md.state import read_state
from tesseral.md.thermo import COLUMNS, plot_thermo, read_thermo
from tesseral.md.trajectory import open_trajectory
from tesseral.md.watch import Limits, SimulationStoppedError

KINDS = {
    "nve": {"ensemble": "nve"},
    "langevin": {"thermostat": "langevin"},
    "bussi": {"thermostat": "bussi"},
    "nose-hoover": {"thermostat": "nose-hoover"},
    "isotropic": {"ensemble": "npt"},
    "full": {"ensemble": "npt", "barostat": "full"},
}
RUN_AS_PROCESS = """
import sys, time
sys.path.insert(0, {folder!r})
from morse import Morse
from ase.io import read
from tesseral.md.dynamics import run_md

slow = [(lambda simulation: time.sleep(0.02), 1)]
run_md(read({start!r}), Morse(), steps={steps}, output={output!r}, resume={resume}, every=2, save_every=5, seed=3,
       hooks=slow, thermostat="langevin")
"""


def frames_of(path):
    """Positions, momenta and energies of all frames."""
    if path.suffix == ".h5":
        return [(f.positions, f.arrays["momenta"], float(f.labels["energy"])) for f in Store(path)]
    return [(f.positions, f.get_momenta(), f.get_potential_energy()) for f in read(path, ":")]


def assert_same_run(one, two):
    """Both runs left the same trajectory, log and state."""
    a, b = Files.beside(one), Files.beside(two)
    assert a.thermo.read_text() == b.thermo.read_text()
    frames = list(zip(frames_of(one), frames_of(two), strict=True))
    assert frames
    for (x, p, e), (y, q, f) in frames:
        assert np.array_equal(x, y) and np.array_equal(p, q) and e == f
    first, second = read_state(a.state), read_state(b.state)
    assert first.arrays.keys() == second.arrays.keys()
    assert all(np.array_equal(first.arrays[k], second.arrays[k]) for k in first.arrays)
    assert {**first.meta, "marks": 0} == {**second.meta, "marks": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(crystal, morse, tmp_path, kind):
    """Stopping between records and saved states changes no bit of what follows."""
    options = {"every": 3, "save_every": 10, "timestep_fs": 2.0, "barostat_fs": 100.0, **KINDS[kind]}
    whole, parts = tmp_path / "whole.extxyz", tmp_path / "parts.extxyz"
    expected = run_md(crystal, morse, steps=31, output=whole, seed=4, **options)
    run_md(crystal, morse, steps=13, output=parts, seed=4, **options)
    result = run_md(crystal, morse, steps=31, output=parts, resume=True)
    assert (result.step, result.steps_run) == (31, 18)
    assert_same_run(whole, parts)
    assert result.temperature_K == expected.temperature_K and result.drift == expected.drift
    assert result.settings == expected.settings


@pytest.mark.parametrize("ending", ["extxyz", "traj", "h5"])
def test_what_was_recorded_after_the_saved_state_is_dropped(crystal, morse, tmp_path, ending):
    """As after a power cut: files are longer than the state says."""
    whole, parts = tmp_path / f"whole.{ending}", tmp_path / f"parts.{ending}"
    options = {"every": 2, "save_every": 10, "seed": 4}
    run_md(crystal, morse, steps=24, output=whole, **options)
    run_md(crystal, morse, steps=10, output=parts, **options)
    state = Files.beside(parts).state.read_bytes()
    run_md(crystal, morse, steps=17, output=parts, resume=True)
    Files.beside(parts).state.write_bytes(state)
    run_md(crystal, morse, steps=24, output=parts, resume=True)
    assert_same_run(whole, parts)


@pytest.mark.parametrize("ending", ["extxyz", "traj", "h5"])
def test_kill_9_loses_at_most_the_last_interval(molecule, morse, tmp_path, ending):
    molecule.write(tmp_path / "start.extxyz")
    paths = {name: tmp_path / f"{name}.{ending}" for name in ("killed", "whole")}

    def script(name, resume, steps=60):
        return RUN_AS_PROCESS.format(
            folder=str(Path(__file__).parent),
            start=str(tmp_path / "start.extxyz"),
            output=str(paths[name]),
            resume=resume,
            steps=steps,
        )

    state = Files.beside(paths["killed"]).state
    thermo = Files.beside(paths["killed"]).thermo
    process = subprocess.Popen([sys.executable, "-c", script("killed", False)])
    deadline = time.monotonic() + 600  # generous: a loaded machine imports slowly
    while (not thermo.exists() or len(thermo.read_text().splitlines()) < 12) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recorded = int(thermo.read_text().splitlines()[-1].split(",")[0])
    assert recorded - 5 <= read_state(state).step <= recorded + 2
    start = read(tmp_path / "start.extxyz")
    result = run_md(start, morse, steps=60, output=paths["killed"], resume=True, save_every=5)
    assert 0 < result.steps_run < 60
    run_md(start, morse, steps=60, output=paths["whole"], every=2, save_every=5, seed=3, thermostat="langevin")
    assert_same_run(paths["whole"], paths["killed"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_step_and_saves(molecule, morse, tmp_path, number):
    output = tmp_path / "run.extxyz"

    def interrupt(simulation):
        if simulation.step == 7:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run_md(molecule, morse, steps=50, output=output, every=2, seed=1, hooks=[(interrupt, 1)])
    assert signal.getsignal(number) is before
    assert read_state(Files.beside(output).state).step == 7
    run_md(molecule, morse, steps=20, output=output, resume=True)
    run_md(molecule, morse, steps=20, output=tmp_path / "whole.extxyz", every=2, seed=1)
    assert_same_run(tmp_path / "whole.extxyz", output)


def test_resume_extends_a_finished_run_and_knows_when_it_is_done(molecule, morse, tmp_path):
    output = tmp_path / "run.traj"
    run_md(molecule, morse, steps=10, output=output, every=5)
    assert run_md(molecule, morse, steps=20, output=output, resume=True).steps_run == 10
    assert run_md(molecule, morse, steps=20, output=output, resume=True).steps_run == 0
    assert len(read(output, ":")) == 5


def test_resume_refuses_what_would_be_another_run(molecule, crystal, morse, morse_class, tmp_path):
    output = tmp_path / "run.extxyz"
    run_md(molecule, morse, steps=4, output=output, seed=3)
    cases = [
        ((molecule, morse), {"timestep_fs": 2.0}, "timestep_fs was 1.0, is 2.0"),
        ((molecule, morse), {"seed": 4}, "seed was 3, is 4"),
        ((molecule, morse_class(depth=0.5)), {}, "weights was"),
        ((crystal, morse), {}, "belongs to another structure"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(UserError, match=message):
            run_md(*arguments, steps=8, output=output, resume=True, **options)
    with pytest.raises(UserError, match="no such state file"):
        run_md(molecule, morse, steps=8, output=tmp_path / "other.extxyz", resume=True)


def test_damaged_state_and_files_are_named(molecule, morse, tmp_path):
    output = tmp_path / "run.extxyz"
    run_md(molecule, morse, steps=20, output=output)
    files = Files.beside(output)
    files.trajectory.write_text(files.trajectory.read_text()[:50])
    with pytest.raises(UserError, match="holds 50 bytes"):
        run_md(molecule, morse, steps=30, output=output, resume=True)
    files.state.write_bytes(files.state.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        run_md(molecule, morse, steps=30, output=output, resume=True)


def test_nothing_is_overwritten_without_force(molecule, morse, tmp_path):
    output = tmp_path / "run.extxyz"
    run_md(molecule, morse, steps=4, output=output, seed=0)
    content = output.read_text()
    with pytest.raises(UserError, match=r"exist.* already.*--resume.*--force"):
        run_md(molecule, morse, steps=4, output=output, seed=1)
    assert output.read_text() == content
    run_md(molecule, morse, steps=4, output=output, seed=1, force=True)
    assert output.read_text() == content or "step=0" in output.read_text()


def test_same_seed_same_run_and_the_seed_is_kept(molecule, morse, tmp_path):
    drawn = run_md(molecule, morse, steps=5, output=tmp_path / "a.extxyz", every=1)
    again = run_md(molecule, morse, steps=5, output=tmp_path / "b.extxyz", every=1, seed=drawn.seed)
    other = run_md(molecule, morse, steps=5, seed=drawn.seed + 1)
    assert np.array_equal(drawn.atoms.positions, again.atoms.positions)
    assert not np.array_equal(drawn.atoms.positions, other.atoms.positions)
    assert read_state(tmp_path / "a.state.safetensors").meta["seed"] == drawn.seed


def test_given_velocities_are_used(molecule, morse):
    molecule.set_momenta(np.random.default_rng(0).normal(size=(12, 3)))
    simulation = Simulation(molecule, Calculator(morse), Settings(thermostat="langevin"), seed=0)
    assert np.array_equal(simulation.atoms.get_momenta(), molecule.get_momenta())


def test_the_start_and_its_labels_are_left_alone(molecule, morse, tmp_path):
    """Labels of the start would be wrong in every later frame."""
    molecule.info.update(energy=-99.0, config_type="rmd", charge=1)
    molecule.arrays["forces"] = np.ones((12, 3))
    positions = molecule.positions.copy()
    run_md(molecule, morse, steps=4, output=tmp_path / "run.extxyz", every=2)
    assert np.array_equal(molecule.positions, positions) and molecule.calc is None
    for frame in read(tmp_path / "run.extxyz", ":"):
        assert frame.get_potential_energy() != -99 and not (frame.get_forces() == 1).any()
        assert set(frame.info) == {"step", "time_fs", "charge"}


def test_frames_hold_the_results_of_their_own_geometry(crystal, morse, tmp_path):
    run_md(crystal, morse, steps=6, output=tmp_path / "run.traj", every=2, ensemble="npt")
    for frame in read(tmp_path / "run.traj", ":"):
        fresh = frame.copy()
        fresh.calc = Calculator(morse)
        assert fresh.get_potential_energy() == pytest.approx(frame.get_potential_energy(), abs=1e-9)
        assert np.abs(fresh.get_forces() - frame.get_forces()).max() < 1e-9
        assert np.abs(fresh.get_stress() - frame.get_stress()).max() < 1e-9


def test_thermo_log_and_figure(crystal, molecule, morse, tmp_path):
    result = run_md(crystal, morse, steps=20, output=tmp_path / "run.extxyz", ensemble="npt", every=5)
    log = read_thermo(tmp_path / "run.thermo.csv")
    assert tuple(log) == COLUMNS
    assert log["step"].tolist() == [0, 5, 10, 15, 20]
    assert np.allclose(log["total_eV"], log["potential_eV"] + log["kinetic_eV"])
    assert log["temperature_K"].mean() == pytest.approx(result.temperature_K[0])
    assert log["pressure_GPa"].mean() == pytest.approx(result.pressure_GPa)
    slope = np.polyfit(log["time_fs"], log["conserved_eV"], 1)[0]
    assert result.drift == pytest.approx(slope * 1e6 / len(crystal), rel=1e-4)
    run_md(molecule, morse, steps=10, output=tmp_path / "gas.extxyz", every=5)
    assert np.isnan(read_thermo(tmp_path / "gas.thermo.csv")["pressure_GPa"]).all()
    for name in ("run", "gas"):
        plot_thermo(tmp_path / f"{name}.thermo.csv", tmp_path / f"{name}.png", title=name)
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="no thermo log"):
        read_thermo(tmp_path / "run.extxyz")


def test_result_as_json(molecule, morse, tmp_path):
    record = run_md(molecule, morse, steps=10, output=tmp_path / "run.extxyz", every=5).to_dict()
    assert json.loads(json.dumps(record))["drift"]["unit"] == "meV/atom/ps"
    assert record["pressure"]["mean"] is None and record["speed"]["ns_per_day"] > 0


def test_hooks_see_every_interval(molecule, morse):
    seen = []
    run_md(molecule, morse, steps=9, hooks=[(lambda s: seen.append(s.step), 3)])
    assert seen == [3, 6, 9]
    with pytest.raises(UserError, match="an interval of 0 steps"):
        run_md(molecule, morse, steps=9, hooks=[(print, 0)])


def test_any_ase_calculator(tmp_path):
    atoms = Atoms("Cu4", positions=2.6 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.7]]))
    whole, parts = tmp_path / "whole.extxyz", tmp_path / "parts.extxyz"
    run_md(atoms, EMT(), steps=12, output=whole, every=2, seed=0)
    run_md(atoms, EMT(), steps=5, output=parts, every=2, seed=0)
    run_md(atoms, EMT(), steps=12, output=parts, resume=True)
    assert_same_run(whole, parts)


def test_trajectory_memory_is_a_prefix(molecule, morse, tmp_path):
    """A mark beyond the end of the file is an error, not silence."""
    for ending in ("extxyz", "traj"):
        with pytest.raises(UserError, match="at least 3"):
            path = tmp_path / f"short.{ending}"
            writer = open_trajectory(path)
            if ending == "traj":
                simulation = Simulation(molecule, Calculator(morse), Settings(), seed=0)
                writer.write(simulation.frame())
            writer.close()
            open_trajectory(path, 3)


class TestStops:
    """Leaving the limits stops the run, says why, and keeps the last good frame."""

    def test_hot(self, molecule, morse, tmp_path):
        output = tmp_path / "run.extxyz"
        with pytest.raises(
            SimulationStoppedError, match=r"temperature reached .*limit 310 K.*last good frame"
        ) as caught:
            run_md(
                molecule,
                morse,
                steps=500,
                output=output,
                ensemble="nve",
                limits=Limits(temperature_K=310),
                temperature_K=200,
                seed=0,
            )
        frames = read(tmp_path / "run.stopped.extxyz", ":")
        assert [frame.info["role"] for frame in frames] == ["last good", "stopped here"]
        assert frames[1].info["step"] == caught.value.step == frames[0].info["step"] + 1
        good = read_thermo(tmp_path / "run.thermo.csv")
        assert good["temperature_K"].max() <= 310
        assert read_state(Files.beside(output).state).step <= frames[0].info["step"]

    def test_energy(self, molecule, morse):
        with pytest.raises(SimulationStoppedError, match="potential energy changed by") as caught:
            run_md(molecule, morse, steps=500, limits=Limits(energy_change=0.02), temperature_K=600, seed=0)
        assert caught.value.last_good.get_potential_energy() != caught.value.offending.get_potential_energy()

    def test_atoms_too_close_for_their_elements(self, morse):
        start = Atoms("CH", positions=[[0, 0, 0], [0, 0, 0.5]])
        with pytest.raises(
            SimulationStoppedError, match=r"atoms .* \(C-H\) are 0.50 Å apart, closer than 0.54 Å \(half"
        ):
            run_md(start, morse, steps=1)

    def test_pair_distance_below_training(self, molecule, morse):
        morse.card = {"card": {"domain": Domain(min_distance={"O-O": 5.0}).to_dict()}}
        with pytest.raises(SimulationStoppedError, match=r"shortest in training 5.00 Å"):
            run_md(molecule, morse, steps=1)

    def test_unknown_surroundings(self, molecule, morse):
        morse.card = {"card": {"domain": Domain(neighbors={"C": (1, 2)}).to_dict()}}
        with pytest.raises(SimulationStoppedError, match=r"in training it was 1 to 2: outside"):
            run_md(molecule, morse, steps=1)
        assert run_md(molecule, morse, steps=1, limits=Limits(surroundings=False)).step == 1

    def test_force_beyond_training(self, molecule, morse):
        morse.card = {"card": {"domain": Domain(max_force=0.01).to_dict()}}
        with pytest.raises(SimulationStoppedError, match=r"the largest in training was 0.0"):
            run_md(molecule, morse, steps=1)

    def test_a_domain_measured_on_the_run_itself_lets_it_pass(self, molecule, morse, tmp_path):
        from tesseral.datasets.read import read as read_structures

        run_md(molecule, morse, steps=40, output=tmp_path / "run.extxyz", every=1, seed=0)
        domain = measure_domain(read_structures(tmp_path / "run.extxyz"))
        assert set(domain.min_distance) == {"C-C", "C-H", "H-H", "O-C", "O-H", "O-O"}
        morse.card = {"card": json.loads(json.dumps({"domain": domain.to_dict()}))}
        assert run_md(molecule, morse, steps=40, seed=0).step == 40

    def test_a_failing_model_stops_with_the_last_good_frame(self, molecule, morse, tmp_path):
        """The step before the failure is kept, and the failed one writes nothing."""
        calculator = Calculator(morse)

        def spoil(simulation):
            calculator.model.depth.fill_(float("nan"))

        with pytest.raises(SimulationStoppedError, match=r"stopped at step 7: .* not finite") as caught:
            run_md(molecule, calculator, steps=20, output=tmp_path / "run.extxyz", every=1, hooks=[(spoil, 6)])
        assert caught.value.last_good.info["step"] == 6
        assert read(tmp_path / "run.stopped.extxyz").info["step"] == 6
        assert read_thermo(tmp_path / "run.thermo.csv")["step"][-1] == 6
