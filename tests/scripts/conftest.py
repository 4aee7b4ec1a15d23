"""Two tiny models in place of the shipped ones, and structures on disk, for the tests of commands."""

import pytest
import torch
from ase.build import bulk, molecule

from tesseral import potentials
from tesseral.datasets.statistics import Statistics

TINY = {
    "lmax": 1,
    "n_layers": 1,
    "channels": [8],
    "field_channels": 4,
    "scalars": 8,
    "n_radial": 4,
    "cutoff": 4.0,
}


def tiny_model(elements):
    """An untrained `Tesseral`, seeded."""
    torch.manual_seed(0)
    statistics = Statistics(elements, {z: -float(z) for z in elements}, 1.0, 1.0, 10.0, 1, 1)
    return potentials.build("tesseral", dict(TINY), statistics)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of weights with a molecular and a periodic model, both in place of the real ones."""
    folder = tmp_path / "weights"
    for name, elements, periodic in (("tiny-organic", [1, 6, 8], False), ("tiny-solids", [29], True)):
        potentials.save(tiny_model(elements), folder / f"{name}.safetensors", {"card": {"periodic": periodic}})
    monkeypatch.setattr("tesseral.training.shipped.weights", lambda room: folder)
    return folder


@pytest.fixture
def water(tmp_path):
    """Path of a file with a water molecule."""
    path = tmp_path / "water.extxyz"
    molecule("H2O").write(path)
    return path


@pytest.fixture
def copper(tmp_path):
    """Path of a file with a rattled copper cell."""
    path = tmp_path / "copper.extxyz"
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.write(path)
    return path
