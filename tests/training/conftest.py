"""The toy data of the training tests."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy():
    """The module toy.py beside this file."""
    spec = importlib.util.spec_from_file_location("tesseral_test_toy", Path(__file__).with_name("toy.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy_store(toy, tmp_path_factory):
    """24 labelled frames in a store."""
    return toy.write(tmp_path_factory.mktemp("toy") / "toy.h5")


@pytest.fixture
def toy_config(toy, toy_store, tmp_path):
    """Makes the configuration of a run in a new folder: `toy_config("a", epochs=2)`."""
    from tesseral.potentials.fit import PotentialTraining
    from tesseral.training.config import load_config

    def make(name, *overrides, **training):
        path = tmp_path / f"{name}.yaml"
        path.write_text(toy.config_text(toy_store, tmp_path / name, **training))
        return load_config(PotentialTraining, path, overrides)

    return make
