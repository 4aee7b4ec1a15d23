"""Small networks and molecules of the tests of Hamiltonian models."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def nets():
    """The module small_networks.py beside this file."""
    path = Path(__file__).with_name("small_networks.py")
    spec = importlib.util.spec_from_file_location("tesseral_test_small_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
