"""Integrators and velocities: conservation, temperatures, degrees of freedom, refusals."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength

from tesseral.datasets.errors import UserError
from tesseral.md.calculator import Calculator
from tesseral.md.dynamics import run_md
from tesseral.md.ensembles import INTERNALS, Settings, build, internals
from tesseral.md.relax import relax
from tesseral.md.simulation import Simulation
from tesseral.md.velocities import draw_velocities, remove_drift, temperature

KINDS = {
    "nve": {"ensemble": "nve"},
    "langevin": {"thermostat": "langevin"},
    "bussi": {"thermostat": "bussi"},
    "nose-hoover": {"thermostat": "nose-hoover"},
    "isotropic": {"ensemble": "npt"},
    "full": {"ensemble": "npt", "barostat": "full"},
}


@pytest.fixture(scope="module")
def small(morse_class):
    """A float64 crystal of 16 atoms at its minimum with a short cutoff: cheap steps."""
    model = morse_class(cutoff=3.6)
    atoms = bulk("Cu", cubic=True, a=3.1) * (2, 2, 1)
    return relax(atoms, model, cell="volume").atoms, model


def test_velocity_verlet_is_second_order(small):
    """Halving the time step divides the energy error by four."""
    atoms, model = small
    errors = []
    for timestep in (4.0, 2.0):
        simulation = Simulation(
            atoms,
            Calculator(model),
            Settings(ensemble="nve", timestep_fs=timestep, temperature_K=300),
            seed=1,
        )
        total = []
        simulation.attach(lambda s, total=total: total.append(s.row().total))
        simulation.run(int(400 / timestep))
        errors.append(np.std(total))
    assert 3.3 < errors[0] / errors[1] < 4.7


def test_nve_drift_is_small(small):
    atoms, model = small
    result = run_md(atoms, model, ensemble="nve", steps=600, seed=0, timestep_fs=2, every=5, temperature_K=300)
    assert abs(result.drift) < 0.05  # meV/atom/ps


@pytest.mark.parametrize("kind", KINDS)
def test_conserved_energy(small, kind):
    """Each ensemble has a conserved quantity; fluctuations stay far below k T per atom."""
    atoms, model = small
    simulation = Simulation(atoms, Calculator(model), Settings(temperature_K=300, **KINDS[kind]), seed=2)
    drift = []
    simulation.attach(lambda s: drift.append(s.row().drift))
    simulation.run(200)
    assert np.abs(drift).max() < 1.5  # meV/atom; k T is 26


@pytest.mark.parametrize("kind", ["bussi", "nose-hoover", "langevin"])
def test_thermostats_reach_the_temperature(kind, morse_class):
    """Also for five atoms, where counting 15 for 9 degrees of freedom would be an error of two thirds."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.87, 0], [0.5, 0.29, 0.8], [0.5, 0.29, -0.8]])
    model = Calculator(morse_class(depth=2.0))
    atoms = relax(Atoms("O5", positions=2.2 * corners), model).atoms
    options = {"thermostat": kind, "timestep_fs": 3, "thermostat_fs": 40, "temperature_K": 300, "every": 3}
    start = run_md(atoms, model, steps=300, seed=5, **options).atoms
    result = run_md(start, model, steps=2000, seed=6, **options)
    mean, spread = result.temperature_K
    freedom = 15 if kind == "langevin" else 9
    assert abs(mean - 300) < 40
    assert abs(spread / 300 - np.sqrt(2 / freedom)) < 0.12


def test_npt_reaches_the_pressure(small):
    atoms, model = small
    options = {"ensemble": "npt", "steps": 600, "timestep_fs": 2, "barostat_fs": 200, "seed": 1}
    for barostat in ("isotropic", "full"):
        result = run_md(atoms, model, pressure_GPa=8, barostat=barostat, **options)
        assert abs(result.pressure_GPa - 8) < 1.5


def test_maxwell_boltzmann():
    atoms = Atoms("HCO" * 4000, positions=np.zeros((12000, 3)))
    draw_velocities(atoms, 300, np.random.default_rng(0))
    for element in "HCO":
        part = atoms[[a.index for a in atoms if a.symbol == element]]
        assert abs(temperature(part, 3 * len(part)) - 300) < 6
    assert np.abs((atoms.get_velocities() ** 4).mean() / (atoms.get_velocities() ** 2).mean() ** 2) > 3  # mixture


@pytest.mark.parametrize(
    ("atoms", "frozen"),
    [
        (Atoms("H2O", positions=[[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0.1]]), 6),
        (Atoms("CO2", positions=[[0, 0, 0], [0.7, 0.7, 0.7], [-0.7, -0.7, -0.7]]), 5),
        (Atoms("O", positions=[[1, 2, 3]]), 3),
        (bulk("Cu", cubic=True), 3),
    ],
)
def test_motion_of_the_whole_is_removed(atoms, frozen):
    draw_velocities(atoms, 500, np.random.default_rng(1))
    assert remove_drift(atoms) == frozen
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-12
    if not atoms.pbc.any():
        assert np.abs(atoms.get_angular_momentum()).max() < 1e-12


def test_fixed_atoms_do_not_move(slab, morse):
    slab.set_constraint(FixAtoms(range(6)))
    for kind in ("nve", "langevin", "bussi", "nose-hoover"):
        result = run_md(slab, morse, steps=10, seed=0, **KINDS[kind])
        assert np.array_equal(result.atoms.positions[:6], slab.positions[:6])
        assert not np.array_equal(result.atoms.positions[6:], slab.positions[6:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "nvp"}, "expected one of nve, nvt, npt"),
        ({"thermostat": "berendsen"}, "expected one of langevin, nose-hoover, bussi"),
        ({"barostat": "anisotropic"}, "expected one of isotropic, full"),
        ({"timestep_fs": 0}, "timestep_fs = 0: must be a positive number"),
        ({"temperature_K": -5}, "temperature_K = -5"),
        ({"temperature_K": 0}, "temperature_K = 0"),
        ({"pressure_GPa": float("nan")}, "pressure_GPa"),
        ({"ensemble": "npt"}, "npt needs three periodic axes"),
        ({"steps": -1}, "must not be negative"),
        ({"every": 0}, "every = 0, save_every = 100: must be positive"),
        ({"save_every": 0}, "save_every = 0: must be positive"),
        ({"output": "run.dat"}, "must end in one of"),
        ({"resume": True}, "resume needs the output"),
    ],
)
def test_errors_say_what_to_do(molecule, morse, options, message):
    with pytest.raises(UserError, match=message):
        run_md(molecule, morse, **{"steps": 1, **options})


def test_a_single_atom_needs_langevin(morse):
    atom = Atoms("O", positions=[[0, 0, 0]])
    with pytest.raises(UserError, match="no degree of freedom"):
        run_md(atom, morse, steps=1, ensemble="nve")
    assert run_md(atom, morse, steps=5, thermostat="langevin").step == 5


def test_constraints_that_an_integrator_does_not_know(molecule, crystal, morse):
    molecule.set_constraint(FixBondLength(0, 1))
    with pytest.raises(UserError, match="knows no constraint but FixAtoms, the structure has FixBondLength"):
        run_md(molecule, morse, steps=1, thermostat="nose-hoover")
    crystal.set_constraint(FixAtoms([0]))
    with pytest.raises(UserError, match="npt cannot keep atoms fixed"):
        run_md(crystal, morse, steps=1, ensemble="npt")


def test_nonconservative_models_are_refused_in_nve(molecule, morse_class):
    direct = type("Direct", (morse_class,), {"conservative": False})()
    with pytest.raises(UserError, match="allow_nonconservative=True"):
        run_md(molecule, direct, steps=1, ensemble="nve")
    assert run_md(molecule, direct, steps=1, ensemble="nve", allow_nonconservative=True).step == 1
    assert run_md(molecule, direct, steps=1, ensemble="nvt").step == 1


@pytest.mark.parametrize("kind", KINDS)
def test_all_variables_of_the_integrator_are_saved(crystal, morse, kind):
    """Every array or number that a step changes in ASE's integrator is in our state, or follows from the
    atoms.
    """
    settings = Settings(**KINDS[kind])
    crystal.calc = Calculator(morse)
    draw_velocities(crystal, 300, np.random.default_rng(0))
    dynamics = build(crystal, settings, 93, np.random.default_rng(0))
    follows = {"_q", "_p", "_h", "accel", "nsteps", "max_steps"}

    def variables():
        found = {}
        for owner in ("", "_thermostat", "_barostat"):
            for name, value in (
                vars(getattr(dynamics, owner, None) if owner else dynamics).items()
                if (not owner or hasattr(dynamics, owner))
                else ()
            ):
                if isinstance(value, int | float | np.ndarray) and name not in follows:
                    found[f"{owner}.{name}".lstrip(".")] = np.array(value, copy=True)
        return found

    before = variables()
    for _ in range(3):
        dynamics.step()
    changed = {
        name for name, value in variables().items() if name not in before or not np.array_equal(before[name], value)
    }
    assert changed <= set(INTERNALS[settings.integrator])
    assert internals(dynamics, settings).keys() == set(INTERNALS[settings.integrator])
