"""The Hamiltonian networks that come with the package, on molecules that PySCF computes beside them."""

import numpy as np
import pytest

import tesseral
from tesseral.training.shipped import shipped

NAME = "sphnet-organic"
TESTED = {"sphnet-organic": 50, "sphnet-water": 50, "sphnet-ethanol": 10}  # molecules kept aside, at least


@pytest.mark.parametrize("name", TESTED)
def test_card_says_what_a_user_must_know(name):
    header = shipped("hamiltonian")[name]
    assert all(header["card"][key] for key in ("summary", "description", "data", "licence", "not_for"))
    assert header["metrics"]["test"]["n_molecules"] >= TESTED[name]


def test_scf_starts_of_the_card_hold_the_project_to_its_aims():
    scf = shipped("hamiltonian")[NAME]["metrics"]["scf"]
    assert scf["n_molecules"] >= 50
    assert scf["all_converged"]
    assert scf["ratio_minao"]["mean"] < 0.75
    assert scf["ratio_1e"]["mean"] < 0.45
    assert scf["largest_energy_difference"]["value"] < 1e-8


def test_water_in_a_new_geometry():
    pytest.importorskip("pyscf", reason="labels come from PySCF: pip install 'tesseral[hamiltonian]'")
    from tesseral.datasets.structure import Structure
    from tesseral.potentials.hamiltonian import predict

    water = Structure([8, 1, 1], [[0.0, 0.0, 0.0], [0.98, 0.1, 0.0], [-0.3, 0.2, 0.93]])
    found = predict("sphnet-water", water)
    converged = found.mean_field.kernel(dm0=found.density)
    assert found.mean_field.converged
    assert np.abs(found.orbitals.energies[:5] - found.mean_field.mo_energy[:5]).mean() < 1e-3
    assert 0 <= found.mean_field.energy_tot(dm=found.density) - converged < 1e-4


def test_prediction_is_close_to_a_converged_scf(repo_root):
    pytest.importorskip("pyscf", reason="labels come from PySCF: pip install 'tesseral[hamiltonian]'")
    from tesseral.potentials.hamiltonian import predict

    found = predict(NAME, tesseral.read(repo_root / "examples" / "ethanol.xyz")[0])
    overlap = found.mean_field.get_ovlp()
    assert np.trace(found.density @ overlap) == pytest.approx(26, abs=1e-10)
    found.mean_field.conv_tol = 1e-9
    energy = found.mean_field.kernel(dm0=found.density)
    converged = found.mean_field.mo_energy
    assert found.mean_field.converged
    assert np.abs(found.orbitals.energies[:13] - converged[:13]).mean() < 0.01
    assert 0 <= found.mean_field.energy_tot(dm=found.density) - energy < 0.003
