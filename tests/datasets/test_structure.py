"""What `Structure` accepts and how it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from tesseral.datasets import Structure
from tesseral.datasets.elements import COVALENT_RADII, MASSES, SYMBOLS, formula, symbol, symbols_to_numbers
from tesseral.datasets.errors import DataError, UserError
from tesseral.datasets.structure import missing_labels, right_handed


def water(**changes) -> Structure:
    fields = {"numbers": [8, 1, 1], "positions": np.eye(3), **changes}
    return Structure(**fields)


BAD = {
    "no atoms": (lambda: Structure([], np.zeros((0, 3))), "the frame has no atoms"),
    "unknown element": (lambda: water(numbers=[8, 1, 119]), "unknown element: atom 2 has atomic number 119"),
    "atomic number zero": (lambda: water(numbers=[0, 1, 1]), "unknown element: atom 0 has atomic number 0"),
    "nan position": (
        lambda: water(positions=[[0, 0, 0], [np.nan, 0, 0], [1, 0, 0]]),
        "positions of atom 1 are not",
    ),
    "zero cell": (lambda: water(pbc=True), "zero cell: axis a is periodic but its cell vector is zero"),
    "zero vector": (lambda: water(pbc=(1, 1, 0), cell=np.diag([3, 0, 3])), "axis b is periodic"),
    "flat cell": (lambda: water(pbc=True, cell=[[3, 0, 0], [3, 0, 0], [0, 0, 3]]), "are parallel"),
    "coplanar cell": (lambda: water(pbc=True, cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]]), "are parallel"),
    "left-handed cell": (
        lambda: water(pbc=True, cell=np.diag([3, 3, -3])),
        "left-handed cell .*right_handed",
    ),
    "nan cell": (
        lambda: water(pbc=True, cell=np.full((3, 3), np.nan)),
        "the cell has values that are not finite",
    ),
    "nan label": (
        lambda: water(labels={"forces": np.full((3, 3), np.nan)}),
        "label 'forces' is NaN .*atom 0",
    ),
    "label shape": (lambda: water(labels={"forces": np.zeros((2, 3))}), r"shape \(2, 3\), expected \(3, 3\)"),
    "label name": (lambda: water(labels={"engery": 0.0}), "unknown label 'engery': labels are energy"),
    "array rows": (lambda: water(arrays={"tags": np.zeros(2)}), "array 'tags' has shape"),
    "bond to nowhere": (lambda: water(bonds=[[0, 3, 1]]), r"bonds name atom 3, the frame has atoms 0\.\.2"),
    "bond to itself": (lambda: water(bonds=[[1, 1, 1]]), "joins an atom with itself"),
    "spin": (lambda: water(spin=0), "multiplicity"),
    "charge": (lambda: water(charge=np.nan), "charge is nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_validate_says_what_where_and_how(name):
    make, message = BAD[name]
    with pytest.raises(UserError, match=f"^a.xyz, frame 3: .*{message}"):
        make().validate("a.xyz, frame 3")


@pytest.mark.parametrize(
    "good",
    [
        water(),
        water(cell=np.diag([3, 3, 3]), pbc=True),
        water(cell=np.diag([3, 3, 3])),
        water(cell=np.diag([3, 3, 0]), pbc=(1, 1, 0)),
        water(cell=[[0, 3, 0], [0, 0, 3], [3, 0, 0]], pbc=True),
        water(labels={"energy": -1.0, "stress": np.zeros(6)}, charge=1, spin=2, bonds=np.zeros((0, 3))),
    ],
)
def test_sound_frames_pass(good):
    good.validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": np.zeros((2, 3))}, r"positions has shape \(2, 3\), expected \(3, 3\)"),
        ({"positions": [["a", "b", "c"]] * 3}, "positions cannot be read as float64"),
        ({"cell": np.zeros((2, 3))}, "cell has shape"),
        ({"pbc": [True, False]}, "pbc has shape"),
    ],
)
def test_shapes_that_cannot_be_are_refused_at_once(changes, message):
    with pytest.raises(DataError, match=message):
        water(**changes)


def test_right_handed_keeps_the_crystal():
    left = water(cell=[[3, 0, 0], [1, 3, 0], [0, 1, -3]], pbc=(True, False, True))
    mended = right_handed(left)
    mended.validate()
    assert np.linalg.det(mended.cell) > 0
    assert {tuple(row) for row in mended.cell[mended.pbc]} == {tuple(row) for row in left.cell[left.pbc]}
    assert right_handed(mended) is mended


def test_missing_labels_names_what_is_there():
    with pytest.raises(DataError, match=r"no frame has the label 'stress'; labels present: energy, forces"):
        missing_labels(("stress",), {"energy", "forces"}, "a.h5")
    missing_labels(("energy",), {"energy"})


def test_elements_agree_with_ase():
    data = pytest.importorskip("ase.data")
    assert list(SYMBOLS) == data.chemical_symbols
    np.testing.assert_allclose(MASSES[1:], data.atomic_masses[1:])
    np.testing.assert_allclose(COVALENT_RADII[1:97], data.covalent_radii[1:97])


def test_symbols():
    assert symbols_to_numbers(["H", "CL", "cl", "D", "Og"]).tolist() == [1, 17, 17, 1, 118]
    assert symbol(17) == "Cl"
    assert formula(np.array([1, 1, 8, 6, 6])) == "C2H2O"
    assert formula(np.array([11, 17])) == "ClNa"
    with pytest.raises(DataError, match=r"a\.xyz: unknown element 'Zz'"):
        symbols_to_numbers(["Zz"], "a.xyz")
    with pytest.raises(DataError, match="outside the periodic table"):
        symbol(119)


def test_the_room_is_light_and_its_functions_are_no_modules():
    code = (
        "import sys, tesseral.datasets.read, tesseral.datasets.split, tesseral.datasets as d;"
        "heavy = {'torch', 'ase', 'rdkit', 'pymatgen', 'h5py'} & set(sys.modules);"
        "assert not heavy, heavy; assert callable(d.read) and callable(d.split) and callable(d.write);"
        "assert d.Store and d.KeyMap"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
