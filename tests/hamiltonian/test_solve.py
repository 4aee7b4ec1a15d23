"""HC = SCε, densities, charges and metrics against PySCF."""

import numpy as np
import pytest

from tesseral.datasets.errors import UserError
from tesseral.datasets.structure import Structure
from tesseral.potentials.hamiltonian.solve import frontier, orbital_errors, solve

pytest.importorskip("pyscf", reason="the extra `hamiltonian` (PySCF) is not installed")

from tesseral.datasets.units import HARTREE
from tesseral.potentials.hamiltonian.labels import label, level_of_theory
from tesseral.potentials.hamiltonian.layout import layout
from tesseral.potentials.hamiltonian.scf import (
    converge,
    density_of_states,
    from_matrix,
    orbital_number,
    write_cube,
)

PBE = level_of_theory("pbe", "def2-svp", 1)
WATER = Structure([8, 1, 1], [[0.0, 0.0, 0.117], [0.0, 0.757, -0.47], [0.1, -0.757, -0.47]])


@pytest.fixture(scope="module")
def made():
    return label(WATER, PBE, name="water")


@pytest.fixture(scope="module")
def prediction(made):
    return from_matrix(WATER, PBE, made.hamiltonian)


def test_orbitals_are_those_of_pyscf(made):
    orbitals = solve(made.hamiltonian, made.overlap)
    np.testing.assert_allclose(orbitals.energies, made.orbital_energies, rtol=0, atol=1e-6)
    identity = orbitals.coefficients.T @ made.overlap @ orbitals.coefficients
    np.testing.assert_allclose(identity, np.eye(24), rtol=0, atol=1e-12)
    mine = frontier(orbitals, 10)
    assert (mine.homo, mine.lumo) == pytest.approx(tuple(made.orbital_energies[4:6]), abs=1e-6)
    with pytest.raises(UserError, match="9 electrons: an open shell"):
        frontier(orbitals, 9)
    with pytest.raises(UserError, match="NaN"):
        solve(made.hamiltonian * np.nan, made.overlap)


def test_metrics_vanish_for_the_reference_and_see_a_rotation_of_the_occupied_space(made):
    same = orbital_errors(made.hamiltonian, made.hamiltonian, made.overlap, 10)
    assert same["orbital_energies"] == same["gap"] == 0
    assert same["similarity"] == pytest.approx(1, abs=1e-12) and same["subspace"] == pytest.approx(1, abs=1e-12)
    # swap two occupied orbitals: every vector is wrong, the occupied space is not
    reference = solve(made.hamiltonian, made.overlap)
    c, sc = reference.coefficients, made.overlap @ reference.coefficients
    energies = reference.energies.copy()
    energies[[2, 3]] = energies[[3, 2]]
    swapped = orbital_errors((sc * energies) @ sc.T, made.hamiltonian, made.overlap, 10)
    assert swapped["subspace"] == pytest.approx(1, abs=1e-9) and swapped["similarity"] < 0.9
    assert swapped["orbital_energies"] < 1e-9 and c.shape == (24, 24)
    rng = np.random.default_rng(0).normal(size=(24, 24)) * 0.02
    other = orbital_errors(made.hamiltonian + rng + rng.T, made.hamiltonian, made.overlap, 10)
    assert other["subspace"] < 0.9999 and other["orbital_energies"] > 1e-4


def test_dipole_and_charges_are_those_of_pyscf(prediction):
    from pyscf.scf.hf import mulliken_pop

    mf = prediction.mean_field
    density, overlap = prediction.density, prediction.overlap
    assert np.einsum("ij,ji->", density, overlap) == pytest.approx(10, abs=1e-10)
    np.testing.assert_allclose(
        prediction.mulliken, mulliken_pop(mf.mol, density, overlap, verbose=0)[1], rtol=0, atol=1e-10
    )
    assert prediction.loewdin.sum() == pytest.approx(0, abs=1e-10) and prediction.loewdin[0] < -0.1
    debye = mf.dip_moment(mf.mol, density, unit="Debye", verbose=0)
    np.testing.assert_allclose(prediction.dipole * 4.803204, debye, rtol=1e-5, atol=1e-9)


def test_converged_hamiltonian_as_start_is_the_limit_of_the_cycles(made, prediction):
    found = converge(prediction)
    assert all(found.converged.values()) and found.spread < 1e-8
    assert found.cycles["predicted"] <= 2 < found.cycles["minao"] < found.cycles["1e"]
    assert found.first_energy == pytest.approx(made.energy, abs=1e-9)
    assert found.ratios["1e"] == found.cycles["predicted"] / found.cycles["1e"]


def test_density_of_states_and_names_of_orbitals(prediction, tmp_path):
    grid = np.linspace(-60, 60, 4001)
    states = density_of_states(prediction.orbitals.energies, grid, 0.5)
    assert np.trapezoid(states, grid) == pytest.approx(48, abs=1e-6)
    assert [orbital_number(t, 10, 24) for t in ("homo", "LUMO", "homo-1", "lumo+2", "1")] == [4, 5, 3, 7, 0]
    for bad in ("homo-9", "25", "lomo"):
        with pytest.raises(UserError, match="orbital"):
            orbital_number(bad, 10, 24)
    write_cube(tmp_path / "homo.cube", prediction, 4, spacing=0.2)
    lines = (tmp_path / "homo.cube").read_text().splitlines()
    shape = [int(line.split()[0]) for line in lines[3:6]]
    values = np.array(" ".join(lines[9:]).split(), dtype=float)
    volume = np.prod([float(line.split()[1 + k]) for k, line in enumerate(lines[3:6])])
    assert len(values) == np.prod(shape)
    assert np.square(values).sum() * volume == pytest.approx(1, abs=0.05)  # a normalised orbital


class Exact:
    """Stands for a network: the converged matrix of a geometry, with an error."""

    def __init__(self, error=0.0):
        self.error, self.card, self.target, self.layout = error, {"level": PBE.header()}, "full", layout("def2-svp")

    def matrix(self, structure):
        made = label(structure, PBE).hamiltonian
        noise = np.random.default_rng(0).normal(size=made.shape) * self.error
        return made + noise + noise.T


@pytest.mark.parametrize("scf", [False, True])
def test_calculator_energies_and_forces(scf, monkeypatch):
    from ase import Atoms

    from tesseral.potentials.hamiltonian import calculator

    network = Exact(error=1e-4)
    monkeypatch.setattr(calculator, "HamiltonianModel", Exact)
    monkeypatch.setattr(calculator, "predict_all", lambda m, s: (from_matrix(x, PBE, m.matrix(x)) for x in s))
    atoms = Atoms("OHH", WATER.positions, calculator=calculator.DensityCalculator(network, scf=scf))
    want = label(WATER, PBE, forces=True)
    error = atoms.get_potential_energy() - want.energy * HARTREE
    assert 0 <= error + 1e-7 and error < (1e-7 if scf else 1e-3)
    assert np.abs(atoms.get_forces() - want.forces).max() < (1e-4 if scf else 5e-3)
    assert atoms.get_charges().sum() == pytest.approx(0, abs=1e-8) and atoms.get_dipole_moment()[2] < -0.3
    assert not scf or 0 < atoms.calc.cycles < 6
