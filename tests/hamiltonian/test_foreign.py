"""Files of Hamiltonians made elsewhere: formats, their unit and order traps, levels that must not mix; label files."""

import pickle
import sqlite3

import numpy as np
import pytest
import torch

from tesseral.datasets.errors import UserError
from tesseral.datasets.structure import Structure
from tesseral.potentials.hamiltonian.level import RESOLVED, Level
from tesseral.potentials.hamiltonian.store import Label, LabelFile, pack, unpack, write_labels

pytest.importorskip("pyscf", reason="the extra `hamiltonian` (PySCF) is not installed")

from tesseral.datasets.units import BOHR
from tesseral.potentials.hamiltonian.foreign import orca_order, reader_of
from tesseral.potentials.hamiltonian.labels import label, level_of_theory
from tesseral.potentials.hamiltonian.layout import layout
from tesseral.potentials.hamiltonian.readers import open_work
from tesseral.scripts.main import main

WATER = np.array([[0.0, 0.0, 0.117], [0.0, 0.757, -0.47], [0.1, -0.757, -0.47]])


def water_label(functional):
    return label(Structure([8, 1, 1], WATER), level_of_theory(functional, "def2-svp"), name="w")


@pytest.fixture(scope="module")
def made():
    return water_label("b3lyp5")


@pytest.fixture(scope="module")
def pbe():
    return water_label("pbe")


def qh9(path, made, *, dynamic):
    rows = {
        "atoms": made.numbers.astype(np.int32).tobytes(),
        "pos": (made.positions / (BOHR if dynamic else 1)).tobytes(),
        "ham": made.hamiltonian.tobytes(),
    }
    base = sqlite3.connect(path)
    if dynamic:
        base.execute("CREATE TABLE data (id BLOB, geo INTEGER, n INTEGER, z BLOB, r BLOB, a, b, c, d, h BLOB)")
        head = [np.int64(17).tobytes(), 4, 3]
        base.execute(
            "INSERT INTO data VALUES (?,?,?,?,?,?,?,?,?,?)",
            [*head, rows["atoms"], rows["pos"], 0, 0, 0, 0, rows["ham"]],
        )
    else:
        base.execute("CREATE TABLE data (id INTEGER, n INTEGER, z BLOB, r BLOB, h BLOB)")
        base.execute("INSERT INTO data VALUES (?,?,?,?,?)", [1, 3, rows["atoms"], rows["pos"], rows["ham"]])
    base.commit()
    base.close()
    return path


@pytest.mark.parametrize("name", ["QH9Stable.db", "QH9Dynamic_300k.db"])
def test_qh9_files_know_their_functional_and_length_unit(name, made, tmp_path):
    path = qh9(tmp_path / name, made, dynamic="Dynamic" in name)
    labels, options = open_work([str(path)])
    assert options.level.resolved == RESOLVED["b3lyp5"] and len(labels) == 1
    np.testing.assert_allclose(labels[0].positions, made.positions, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(labels[0].hamiltonian, made.hamiltonian)
    assert main(["data", "hamiltonian", str(path), "-o", str(tmp_path / "H.h5")]) == 0
    with LabelFile(tmp_path / "H.h5") as file:
        np.testing.assert_allclose(file[0].delta, made.delta, rtol=0, atol=1e-9)


def test_qh9_label_of_the_other_b3lyp_is_found_out(made, tmp_path):
    path = qh9(tmp_path / "QH9Dynamic_100k.db", made, dynamic=True)  # its labels are Gaussian B3LYP, these are not
    with pytest.raises(UserError, match=r"not a converged Fock matrix of b3lyp \[1 xc:402\].* mEh"):
        open_work([str(path)])
    path.rename(tmp_path / "mine.db")
    with pytest.raises(UserError, match="does not state its functional"):
        open_work([str(tmp_path / "mine.db")])
    assert open_work([str(tmp_path / "mine.db")], functional="b3lyp5")[1].level.functional == "b3lyp5"


def to_orca(matrix):
    order = orca_order(layout("def2-svp", [1, 8]), np.array([8, 1, 1]))
    turned = np.empty_like(matrix)
    turned[np.ix_(order, order)] = matrix
    return turned


def test_md17_data_base_in_orca_order(pbe, tmp_path):
    from ase import Atoms
    from ase.db import connect

    base = connect(tmp_path / "schnorb_hamiltonian_water.db")
    data = {"hamiltonian": to_orca(pbe.hamiltonian), "overlap": to_orca(pbe.overlap), "energy": [pbe.energy]}
    base.write(Atoms("OHH", pbe.positions), data=data)
    labels, options = open_work([str(tmp_path / "schnorb_hamiltonian_water.db")])
    assert options.level.functional == "pbe"
    np.testing.assert_allclose(labels[0].hamiltonian, pbe.hamiltonian, rtol=0, atol=1e-12)
    assert np.abs(to_orca(pbe.hamiltonian) - pbe.hamiltonian).max() > 0.01  # the order matters


@pytest.mark.parametrize("unit", [1.0, BOHR])
def test_npz_in_either_length_unit(unit, pbe, tmp_path):
    path = tmp_path / "water.npz"
    np.savez(path, Z=pbe.numbers, R=pbe.positions[None] / unit, H=pbe.hamiltonian[None], S=pbe.overlap[None])
    labels, _ = open_work([str(path)], functional="pbe")
    np.testing.assert_allclose(labels[0].positions, pbe.positions, rtol=0, atol=1e-12)
    np.savez(path, Z=pbe.numbers, R=pbe.positions[None] * 1.3, H=pbe.hamiltonian[None], S=pbe.overlap[None])
    with pytest.raises(UserError, match="no known unit and orbital order"):
        open_work([str(path)], functional="pbe")


def test_shared_files_are_read_and_checked(shared_data):
    paths = [str(shared_data(f"hamiltonian/{n}_pbe_def2svp.h5")) for n in ("water", "ethanol")]
    labels, options = open_work(paths)
    assert len(labels) == 460 and labels[400].n_orbitals == 72 and len(labels[398:402]) == 4
    assert options.level == Level("pbe", RESOLVED["pbe"], "def2-svp", 3, "PySCF 2.14.0")
    mixed = [paths[0], str(shared_data("hamiltonian/qm9small_b3lyp_def2svp.h5"))]
    with pytest.raises(UserError, match=r"different levels of theory.*qm9small.* is b3lyp \[1 xc:402\]"):
        open_work(mixed)
    with pytest.raises(UserError, match="what was asked for"):
        open_work(paths, functional="b3lyp")
    assert len(open_work(mixed[1:], limit=5)[0]) == 5


def test_label_file_keeps_everything_and_can_be_pickled(made, tmp_path):
    lay, level = layout("def2-svp", [1, 8]), level_of_theory("b3lyp5", "def2-svp")
    path = tmp_path / "H.h5"
    assert write_labels(path, [made] * 70, level, lay, provenance={"a": 1}) == 70
    file = pickle.loads(pickle.dumps(LabelFile(path)))
    assert (file.level, file.layout, file.provenance) == (level, lay, {"a": 1})
    for key, value in vars(file[69]).items():
        np.testing.assert_array_equal(value, getattr(made, key), err_msg=key)
    compact = write_labels(tmp_path / "c.h5", [made.compact()], level, lay)
    small = LabelFile(tmp_path / "c.h5")[0]
    assert compact == 1 and small.hamiltonian is None and small.delta.dtype == np.float32
    assert np.abs(small.delta - made.delta).max() < 1e-7
    with pytest.raises(IndexError, match="has 70 labels"):
        file[70]
    with pytest.raises(UserError, match="others do not"):
        write_labels(tmp_path / "x.h5", [made, Label(made.numbers, made.positions, delta=made.delta)], level, lay)
    assert [p.name for p in tmp_path.glob("*")] == ["H.h5", "c.h5"] or not (tmp_path / "x.h5").exists()


def test_triangles():
    matrix = torch.randn(5, 5, dtype=torch.float64).numpy()
    matrix = matrix + matrix.T
    np.testing.assert_array_equal(unpack(pack(matrix)), matrix)
    with pytest.raises(UserError, match="4 numbers are not the lower triangle"):
        unpack(np.zeros(4))


def test_files_of_other_kinds_are_no_hamiltonians(tmp_path):
    (tmp_path / "a.db").write_bytes(b"not a data base")
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n")
    np.savez(tmp_path / "a.npz", R=np.zeros(3))
    assert [reader_of(tmp_path / name) for name in ("a.db", "a.xyz", "a.npz", "none.h5")] == [None] * 4
