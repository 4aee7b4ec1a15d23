"""Extended XYZ: our parser against ASE's on real files, its errors, and the indexed random access."""

import gzip
import os
import pickle

import numpy as np
import pytest

from tesseral.datasets import KeyMap, Structure, iread, open_source, read, write
from tesseral.datasets.errors import DataError
from tesseral.datasets.indexed import IndexedExtxyz, cache_folder
from tesseral.datasets.readers.extxyz import parse_comment

REAL = [
    "3bpa/eval_300K.extxyz.gz",
    "mlearn/Si_test.extxyz.gz",
    "spice_sample/dipeptides_polar_test.extxyz.gz",
    "carbon_gap17_100/carbon_100.extxyz.gz",
    "format_samples/extxyz/small_materials_test.extxyz.gz",
    "format_samples/extxyz/mlip_train.xyz.gz",
    "rmd17/raw/ethanol_train_01.xyz.gz",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERAL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", REAL)
def test_real_files_read_as_ase_reads_them(shared_data, name):
    import ase.io

    path = shared_data(name)
    ours = read(path, index=":20")
    theirs = [Structure.from_ase(atoms) for atoms in ase.io.read(path, ":20")]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.numbers, b.numbers)
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.cell, b.cell)
        np.testing.assert_array_equal(a.pbc, b.pbc)
        assert a.labels.keys() == b.labels.keys() >= {"energy"}
        for key, value in a.labels.items():
            np.testing.assert_allclose(value, b.labels[key], rtol=1e-15, atol=0)
        assert a.info.keys() == b.info.keys()
        assert a.arrays.keys() == b.arrays.keys()


def test_the_traps_of_the_format_samples(shared_data):
    spice = read(shared_data("format_samples/extxyz/SPICE_small_with_charges.xyz.gz"))
    assert [(s.charge, s.spin) for s in spice] == [(s.charge, 1) for s in spice]
    assert all("nl_energy" in s.info and "energy" in s.labels for s in spice)
    uf3 = read(shared_data("format_samples/extxyz/test_uf3.xyz.gz"))
    assert uf3[0].labels["forces"][0, 0] == -4.742581516823975e-01
    committee = read(shared_data("format_samples/extxyz/committee_training_data.xyz.gz"))
    assert float(committee[0].labels["energy"]) == 447.40100301767563


FRAME = """2
Lattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="T T F"
H 0 0 0 1 2 3
O 0 0 1.5 -1 -2 -3
"""


def test_a_frame_in_full(tmp_path):
    (tmp_path / "a.xyz").write_text(FRAME)
    frame = read(tmp_path / "a.xyz")[0]
    assert frame.numbers.tolist() == [1, 8]
    assert frame.pbc.tolist() == [True, True, False]
    assert float(frame.labels["energy"]) == -1.5
    assert frame.labels["forces"].tolist() == [[1, 2, 3], [-1, -2, -3]]
    assert (frame.info, frame.arrays) == ({}, {})


def test_comment_line_values():
    text = (
        'a=1 b=-2.5e3 c=T d="1 2 3" e="x y" f=plain g={1 2} h="_JSON [[1, 2], [3]]" i=[1,2] flag "key w"=5 '
        'j=\'4 5\' k=1,2 e_q="he said \\"no\\"" smiles=[H:1][C@@:2](=O) empty="" nan=nan'
    )
    info = parse_comment(text)
    assert (info["a"], info["b"], info["c"], info["e"], info["f"]) == (1, -2500.0, True, "x y", "plain")
    assert info["d"].tolist() == [1, 2, 3]
    assert info["g"].tolist() == [1, 2]
    assert info["h"] == [[1, 2], [3]]
    assert info["i"].tolist() == [1, 2]
    assert (info["flag"], info["key w"], info["k"], info["empty"]) == (True, 5, "1,2", "")
    assert info["j"].tolist() == [4, 5]
    assert info["e_q"] == 'he said "no"'
    assert info["smiles"] == "[H:1][C@@:2](=O)"
    assert np.isnan(info["nan"])


def test_plain_xyz_and_fortran_numbers(tmp_path):
    (tmp_path / "a.xyz").write_text("1\n\nFe 1.0D+00 0 -2d0\n\n1\nsome words\n8 0 0 0\n")
    first, second = read(tmp_path / "a.xyz")
    assert first.positions.tolist() == [[1, 0, -2]]
    assert second.numbers.tolist() == [8]
    assert second.info == {"comment": "some words"}
    assert not first.pbc.any()


def test_integer_flag_and_text_columns(tmp_path):
    (tmp_path / "a.xyz").write_text(
        "2\nProperties=species:S:1:pos:R:3:tags:I:1:free:L:3:name:S:1\nH 0 0 0 7 T F T CA\nH 1 0 0 8 F F F CB\n"
    )
    frame = read(tmp_path / "a.xyz")[0]
    assert frame.arrays["tags"].tolist() == [7, 8]
    assert frame.arrays["free"].tolist() == [[True, False, True], [False] * 3]
    assert frame.arrays["name"].tolist() == ["CA", "CB"]


BROKEN = {
    "count": ("two\n", "expected the number of atoms, found 'two'"),
    "cut": (FRAME[:-30], "the file ends inside the frame|atom 1 has"),
    "columns": (
        FRAME.replace("H 0 0 0 1 2 3", "H 0 0 0 1 2"),
        "atom 0 has 6 columns, Properties announces 7",
    ),
    "element": (FRAME.replace("H 0", "Qq 0"), "unknown element 'Qq'"),
    "number": (FRAME.replace("1.5 -1", "1.5 x"), "column 'pos/forces' holds a value that is no number"),
    "lattice": (FRAME.replace("3 0 0 0 3 0 0 0 3", "3 0 0"), "Lattice needs nine numbers"),
    "properties": (FRAME.replace("species:S:1:pos", "species:S:pos"), "cannot read Properties"),
    "kind": (FRAME.replace("pos:R:3", "pos:Q:3"), "column 'pos' has kind 'Q'"),
    "no positions": (FRAME.replace("pos:R:3", "loc:R:3"), "names no column 'pos'"),
    "no species": (FRAME.replace("species:S", "kind:S"), "names no column of elements"),
    "pbc": (FRAME.replace("T T F", "T T"), "pbc needs three flags"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("access", ["stream", "index"])
def test_broken_frames_are_named(tmp_path, name, access):
    text, message = BROKEN[name]
    path = tmp_path / "a.xyz"
    path.write_text(FRAME + text)
    with pytest.raises(DataError, match=rf"a\.xyz, frame 1: .*({message})"):
        if access == "stream":
            list(iread(path))
        else:
            list(open_source(path))


def test_a_truncated_gz_is_named(tmp_path):
    path = tmp_path / "a.xyz.gz"
    path.write_bytes(gzip.compress((FRAME * 200).encode())[:-40])
    with pytest.raises(DataError, match=r"a\.xyz\.gz.*the compressed file is damaged or truncated"):
        read(path)
    with pytest.raises(DataError, match=r"a\.xyz\.gz.*the compressed file is damaged or truncated"):
        IndexedExtxyz(path)


def test_a_named_key_that_is_nowhere(tmp_path):
    (tmp_path / "a.xyz").write_text(FRAME.replace("energy=", "REF_energy="))
    with pytest.raises(DataError, match=r"no frame has the key 'ref_enrgy' \(for energy\); present: REF_energy"):
        read(tmp_path / "a.xyz", keys=KeyMap(energy="ref_enrgy"))


def frames(count: int) -> list[Structure]:
    rng = np.random.default_rng(0)
    return [
        Structure(rng.integers(1, 9, n), rng.normal(size=(n, 3)), labels={"energy": float(i)})
        for i, n in enumerate(rng.integers(1, 9, count))
    ]


@pytest.mark.parametrize("name", ["a.xyz", "a.xyz.gz"])
def test_random_access_equals_reading_in_order(tmp_path, name):
    path = tmp_path / name
    write(path, frames(60))
    source = IndexedExtxyz(path)
    in_order = read(path)
    assert source.n_atoms.tolist() == [f.n_atoms for f in in_order]
    for i in np.random.default_rng(1).permutation(60):
        np.testing.assert_array_equal(source[int(i)].positions, in_order[i].positions)
    assert [float(f.labels["energy"]) for f in source] == list(range(60))
    assert float(source[-1].labels["energy"]) == 59.0
    assert [float(f.labels["energy"]) for f in source[10:20:5]] == [10.0, 15.0]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[7].positions, in_order[7].positions)
    with pytest.raises(IndexError, match="60 frames, frame 60 was asked"):
        source[60]


def test_the_index_is_kept_and_renewed(tmp_path, monkeypatch):
    from tesseral.datasets import indexed

    monkeypatch.setattr(indexed, "WORTH_CACHING", 0)
    path = tmp_path / "a.xyz"
    write(path, frames(5))
    assert len(IndexedExtxyz(path)) == 5
    assert len(list(cache_folder().glob("*.index.npz"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(indexed, "scan", lambda *_: pytest.fail("scanned again"))
        assert len(IndexedExtxyz(path)) == 5
    write(path, frames(6), overwrite=True)
    assert len(IndexedExtxyz(path)) == 6
    for damaged in cache_folder().glob("*.index.npz"):
        damaged.write_bytes(b"x")
    assert len(IndexedExtxyz(path)) == 6


def test_a_changed_gz_is_unpacked_again(tmp_path):
    path = tmp_path / "a.xyz.gz"
    write(path, frames(3))
    assert len(IndexedExtxyz(path)) == 3
    write(path, frames(4), overwrite=True)
    os.utime(path, (1, 1))
    assert len(IndexedExtxyz(path)) == 4
    assert len(list(cache_folder().glob("*.xyz"))) == 1


def test_many_files_are_one_source(tmp_path):
    write(tmp_path / "a.xyz", frames(3))
    write(tmp_path / "b.h5", frames(4))
    source = open_source([tmp_path / "a.xyz", tmp_path / "b.h5"])
    assert [float(f.labels["energy"]) for f in source] == [0, 1, 2, 0, 1, 2, 3]
    assert source.where(4).endswith("b.h5, frame 1")
    assert len(source.n_atoms) == 7


@pytest.mark.parametrize(
    ("index", "expected"),
    [(":", [0, 1, 2, 3, 4]), ("1", [1]), (-1, [4]), ("::2", [0, 2, 4]), ("1:3", [1, 2]), ("-2:", [3, 4]),
     ("::-1", [4, 3, 2, 1, 0]), (slice(0, 2), [0, 1])],
)  # fmt: skip
def test_index(tmp_path, index, expected):
    write(tmp_path / "a.xyz", frames(5))
    assert [float(f.labels["energy"]) for f in read(tmp_path / "a.xyz", index=index)] == expected


def test_a_bad_index_and_no_file(tmp_path):
    with pytest.raises(DataError, match="index 'last': write a frame number"):
        read(tmp_path / "a.xyz", index="last")
    with pytest.raises(DataError, match=r"a\.xyz: no such file"):
        read(tmp_path / "a.xyz")
    (tmp_path / "a.xyz").touch()
    with pytest.raises(DataError, match="the file is empty"):
        open_source(tmp_path / "a.xyz")
    with pytest.raises(DataError, match="no data file was named"):
        read([])
    with pytest.raises(DataError, match=r"a group \('::x'\) can be chosen in HDF5 files only"):
        (tmp_path / "a.xyz").write_text(FRAME)
        read(f"{tmp_path}/a.xyz::x")
