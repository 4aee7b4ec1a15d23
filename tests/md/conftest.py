"""Structures and the Morse double that the tests of this room share."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

MORSE = Path(__file__).with_name("morse.py")


def _load_morse():
    spec = importlib.util.spec_from_file_location("tesseral_test_morse", MORSE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Morse


@pytest.fixture(scope="session")
def morse_class():
    """The class of the Morse double."""
    return _load_morse()


@pytest.fixture
def morse(morse_class):
    """A float64 Morse potential of H, C, O and Cu."""
    return morse_class()


def rattled(atoms, amount=0.08, seed=0):
    atoms.positions += np.random.default_rng(seed).normal(0, amount, atoms.positions.shape)
    return atoms


@pytest.fixture
def molecule():
    """Twelve atoms without a cell, near the minimum of the double."""
    grid = 2.1 * np.array([[i, j, k] for i in range(3) for j in range(2) for k in range(2)], dtype=float)
    return rattled(Atoms("C4H4O4", positions=grid))


@pytest.fixture
def crystal():
    """32 copper atoms in a strained, rattled cubic cell."""
    atoms = bulk("Cu", cubic=True, a=3.2) * 2
    strain = np.array([[0.02, 0.01, 0], [0, -0.01, 0.03], [0, 0, 0.01]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return rattled(atoms)


@pytest.fixture
def slab():
    """A copper slab, periodic in two directions."""
    return rattled(fcc111("Cu", (2, 3, 3), a=3.2, vacuum=6.0, periodic=False))


@pytest.fixture(params=["molecule", "slab", "crystal"])
def structure(request):
    """Each of the three kinds of structure in turn."""
    return request.getfixturevalue(request.param)
