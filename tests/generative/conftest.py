"""The small molecules and models of the generators' tests."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small():
    """The module small.py beside this file."""
    spec = importlib.util.spec_from_file_location("tesseral_test_small", Path(__file__).with_name("small.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
