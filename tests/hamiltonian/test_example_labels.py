"""The label files that come with the examples: complete enough to train, and right."""

import numpy as np
import pytest
import torch

from tesseral.datasets.errors import UserError
from tesseral.potentials.hamiltonian.data import LabelSet, Samples

FILES = {"water": (100, "pbe"), "ethanol": (60, "pbe"), "organic": (80, "b3lyp")}


@pytest.fixture(params=sorted(FILES))
def file(request, repo_root):
    return repo_root / "examples/data/hamiltonian" / f"{request.param}.h5", *FILES[request.param]


def test_files_can_be_learned_from(file):
    path, count, functional = file
    labels = LabelSet.open(path)
    assert len(labels) == count and labels.level.functional == functional
    samples = Samples(labels, np.arange(count), labels.layout)
    assert 2e-3 < float(samples.scales().max()) < 0.1  # Eh: the size of a difference to the guess
    targets = samples.batch([0, count - 1]).molecules.targets
    assert torch.equal(targets.diagonal, targets.diagonal.mT)


def test_water_and_molecules_are_of_different_functionals(repo_root):
    folder = repo_root / "examples/data/hamiltonian"
    assert len(LabelSet.open([folder / "water.h5", folder / "ethanol.h5"])) == 160
    with pytest.raises(UserError, match="different levels of theory"):
        LabelSet.open([folder / "water.h5", folder / "organic.h5"])


def test_difference_and_guess_make_a_converged_matrix(repo_root):
    pytest.importorskip("pyscf", reason="the extra `hamiltonian` (PySCF) is not installed")
    from tesseral.potentials.hamiltonian.labels import check_level, complete
    from tesseral.potentials.hamiltonian.solve import solve

    labels = LabelSet.open(repo_root / "examples/data/hamiltonian/water.h5")
    whole = complete(labels.labels[7], labels.level)
    assert check_level(whole, labels.level) < 1e-5  # single precision of the difference
    energies = solve(whole.hamiltonian, whole.overlap).energies
    np.testing.assert_allclose(energies, labels.labels[7].orbital_energies, rtol=0, atol=1e-5)
