"""Property tests: what goes through ASE, pymatgen, RDKit, a store or an extended XYZ file comes back equal."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesseral.datasets import Store, Structure, read, write, write_store
from tesseral.datasets.codec import decode, encode
from tesseral.datasets.structure import LABELS

finite = st.floats(-1e3, 1e3, allow_subnormal=False)
names = st.text("abcdefghij_XYZ0123456789", min_size=1, max_size=8).map(lambda text: "k" + text)
scalars = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), finite, st.text(max_size=12))
nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


def equal(a, b):
    """Deep equality with equal types, NaN equal to NaN."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        same_type = type(a) is type(b) and (a.dtype == b.dtype or a.dtype.kind == b.dtype.kind == "U")
        return same_type and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def assert_same(a: Structure, b: Structure, tolerance: float = 0.0) -> None:
    np.testing.assert_array_equal(a.numbers, b.numbers)
    np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(a.cell, b.cell)
    np.testing.assert_array_equal(a.pbc, b.pbc)
    assert (a.charge, a.spin) == (b.charge, b.spin)
    assert (a.bonds is None) == (b.bonds is None)
    if a.bonds is not None:
        np.testing.assert_array_equal(a.bonds, b.bonds)
    for field in ("labels", "arrays", "info"):
        assert equal(getattr(a, field), getattr(b, field)), (field, getattr(a, field), getattr(b, field))


@st.composite
def structures(draw, info=nested, text_arrays=True):
    n = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    numbers = rng.integers(1, 95, n)
    kind = draw(st.sampled_from(["none", "full", "partial", "box", "slab"]))
    cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    if kind != "none":
        cell = rng.normal(size=(3, 3)) + 6 * np.eye(3)
        pbc = {"full": np.ones(3, bool), "box": np.zeros(3, bool)}.get(kind, np.array([True, False, True]))
    if kind == "slab":
        cell[1] = 0
    labels = {}
    for key in draw(st.sets(st.sampled_from(sorted(LABELS)))):
        spec = LABELS[key]
        labels[key] = rng.normal(size=((n, *spec.shape) if spec.per_atom else spec.shape)) * 10
    arrays = {}
    for key in draw(st.sets(names, max_size=3)):
        makers = [
            lambda: rng.normal(size=n),
            lambda: rng.normal(size=(n, 3)),
            lambda: rng.integers(-5, 5, n),
            lambda: rng.integers(0, 2, n).astype(bool),
        ]
        if text_arrays:
            makers.append(lambda: np.array(["CA", "C B", ""] * n)[:n])
        arrays[key] = makers[draw(st.integers(0, len(makers) - 1))]()
    extra = {key: value for key, value in draw(st.dictionaries(names, info, max_size=3)).items() if key not in arrays}
    bonds = None
    if n > 1 and draw(st.booleans()):
        bonds = np.array([[i, i + 1, rng.integers(0, 5)] for i in range(n - 1)])
    charge = draw(st.none() | st.sampled_from([-2.0, 0.0, 1.0]))
    spin = draw(st.none() | st.integers(1, 4))
    positions = rng.normal(size=(n, 3)) * 4
    return Structure(numbers, positions, cell, pbc, charge, spin, bonds, labels, arrays, extra)


quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(structures())
def test_ase_there_and_back(structure):
    atoms = structure.to_ase()
    assert_same(structure, Structure.from_ase(atoms))


@quick
@given(structures())
def test_pymatgen_there_and_back(structure):
    if not structure.cell.any():
        structure.spin = structure.charge = None  # pymatgen checks that the two fit the number of electrons
    assert_same(structure, Structure.from_pymatgen(structure.to_pymatgen()), tolerance=1e-12)


@quick
@given(structures())
def test_rdkit_there_and_back(structure):
    assert_same(structure, Structure.from_rdkit(structure.to_rdkit(sanitize=False)))


@quick
@given(st.lists(structures(), min_size=1, max_size=5))
def test_store_there_and_back(frames):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        write_store(path, frames)
        store = Store(path)
        assert len(store) == len(frames)
        np.testing.assert_array_equal(store.n_atoms, [frame.n_atoms for frame in frames])
        for i in reversed(range(len(frames))):
            assert_same(frames[i], store[i])
        store.verify()


@quick
@given(st.lists(structures(), min_size=1, max_size=3), st.sampled_from(["a.xyz", "a.extxyz.gz"]))
def test_extxyz_there_and_back(frames, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        assert write(path, frames) == len(frames)
        for before, after in zip(frames, read(path), strict=True):
            assert_same(before, after)


@settings(max_examples=200, deadline=None)
@given(nested)
def test_codec_there_and_back(value):
    assert equal(value, decode(encode(value)))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6).reshape(2, 3),
        np.array([1 + 2j, 3j]),
        np.complex128(1 - 2j),
        np.array(["a", "bc"]),
        np.float32(1.5),
        np.zeros((0, 3)),
        (1, (2.0, "x")),
        {1: "a", (2, 3): "b"},
        b"\x00\xff",
        2 + 1j,
        {"__tesseral__": "array", "dtype": "O"},
    ],
    ids=repr,
)
def test_codec_keeps_what_json_does_not_know(value):
    assert equal(value, decode(encode(value)))


def test_codec_refuses_object_arrays():
    with pytest.raises(ValueError, match="damaged info record"):
        decode('{"__tesseral__": "array", "dtype": "|O", "shape": [1], "data": [1]}')


def test_ase_keeps_constraints_and_cell_displacement():
    from ase import Atoms
    from ase.constraints import FixAtoms, FixBondLength

    atoms = Atoms("H2O", [[0, 0, 0], [0, 0, 0.7], [1, 0, 0]], cell=[4, 5, 6], pbc=(1, 1, 0), celldisp=(0.5, 0, 0))
    atoms.set_constraint([FixAtoms([0]), FixBondLength(0, 1)])
    atoms.set_tags([1, 2, 3])
    atoms.set_initial_magnetic_moments([0.0, 1.0, -1.0])
    back = Structure.from_ase(atoms).to_ase()
    assert [c.todict() for c in back.constraints] == [c.todict() for c in atoms.constraints]
    np.testing.assert_array_equal(back.get_celldisp(), atoms.get_celldisp())
    np.testing.assert_array_equal(back.get_tags(), [1, 2, 3])
    np.testing.assert_array_equal(back.get_initial_magnetic_moments(), [0.0, 1.0, -1.0])


def test_ase_results_of_another_geometry_are_not_labels():
    from ase import Atoms
    from ase.calculators.emt import EMT

    atoms = Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]])
    atoms.calc = EMT()
    energy = atoms.get_potential_energy()
    assert float(Structure.from_ase(atoms).labels["energy"]) == energy
    atoms.positions[0] += 0.1
    assert "energy" not in Structure.from_ase(atoms).labels


def test_a_copy_shares_nothing():
    structure = Structure([1], [[0, 0, 0]], labels={"energy": 1.0}, arrays={"a": np.zeros(1)}, info={"list": [1]})
    copy = structure.copy()
    copy.positions += 1
    copy.labels["energy"] += 1
    copy.arrays["a"] += 1
    copy.info["list"].append(2)
    assert_same(structure, Structure([1], [[0, 0, 0]], labels={"energy": 1.0}, arrays={"a": np.zeros(1)},
                                     info={"list": [1]}))  # fmt: skip
