"""The Hamiltonian network that comes with the package, on a molecule that PySCF computes beside it."""

import numpy as np
import pytest

import tesseral
from tesseral.training.shipped import shipped

NAME = "sphnet-organic"


def test_card_says_what_a_user_must_know():
    header = shipped("hamiltonian")[NAME]
    assert all(header["card"][key] for key in ("summary", "description", "data", "licence", "not_for"))
    assert header["metrics"]["test"]["n_molecules"] >= 50


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
