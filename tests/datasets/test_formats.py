"""Files as others write them: HDF5 layouts, npz, ASE files and databases, fairchem's LMDB, SD files."""

import json
import pickle
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pytest

from tesseral.datasets import KeyMap, Structure, Units, open_source, read, write_store
from tesseral.datasets.errors import DataError
from tesseral.datasets.readers.blocks import formal_charge

HARTREE, BOHR = 27.211386245981, 0.529177210544
RNG = np.random.default_rng(5)


def test_ani_of_the_shared_data(shared_data):
    frames = read(shared_data("ani1_s01/ani_gdb_s01.h5"))
    assert [f.formula for f in (frames[0], frames[4860], frames[8100])] == ["CH4", "H3N", "H2O"]
    assert len(frames) == 9720
    energies = np.array([float(f.labels["energy"]) for f in frames[:4860]]) / HARTREE
    assert (-40.4996 < energies).all() and (energies < -40.4396).all()
    assert frames[0].info["group"] == "gdb11_s01/gdb11_s01-0"


def test_rmd17_groups_of_the_shared_data(shared_data):
    path = shared_data("rmd17/ethanol.h5")
    frames = read(f"{path}::split_01/train")
    with h5py.File(path) as file:
        group = file["split_01/train"]
        assert len(frames) == 1000
        np.testing.assert_array_equal(frames[7].positions, group["positions"][7])
        np.testing.assert_array_equal(frames[7].labels["forces"], group["forces"][7])
        assert float(frames[7].labels["energy"]) == group["energy"][7]
    with pytest.raises(DataError, match="no group 'split_09'; groups: split_01, split_01/test"):
        read(f"{path}::split_09")


def write_spice(path, declare=True):
    """The documented layout: https://github.com/openmm/spice-dataset (one group per molecule)."""
    with h5py.File(path, "w") as file:
        for name, smiles, numbers in (
            ("mol1", "[OH:1][H:2]", [8, 1, 1]),
            ("ion", "[N+:1]([H:2])[H:3]", [7, 1, 1]),
        ):
            group = file.create_group(name)
            group["subset"] = ["SPICE test"]
            group["smiles"] = [smiles]
            group["atomic_numbers"] = np.array(numbers)
            group["conformations"] = RNG.normal(size=(4, 3, 3)).astype(np.float32)
            group["dft_total_energy"] = RNG.normal(size=4) - 76
            group["dft_total_gradient"] = RNG.normal(size=(4, 3, 3)).astype(np.float32)
            group["formation_energy"] = np.arange(4.0)
            group["mbis_charges"] = RNG.normal(size=(4, 3, 1))
            group["scf_dipole"] = RNG.normal(size=(4, 3))
            group["mayer_indices"] = RNG.normal(size=(4, 3, 3))
            if declare:
                group["conformations"].attrs["units"] = "bohr"
                group["dft_total_energy"].attrs["units"] = "hartree"
                group["dft_total_gradient"].attrs["units"] = "hartree/bohr"


@pytest.mark.parametrize("declare", [True, False])
def test_spice_layout(tmp_path, declare):
    path = tmp_path / "spice.hdf5"
    write_spice(path, declare)
    frames = read(path)
    assert [f.info["group"] for f in frames] == ["ion"] * 4 + ["mol1"] * 4
    assert [f.charge for f in frames[3:5]] == [1.0, 0.0]
    with h5py.File(path) as file:
        group = file["mol1"]
        frame = frames[6]
        np.testing.assert_allclose(frame.positions, group["conformations"][2] * BOHR)
        assert float(frame.labels["energy"]) == pytest.approx(group["dft_total_energy"][2] * HARTREE)
        gradient = group["dft_total_gradient"][2].astype(float)
        np.testing.assert_allclose(frame.labels["forces"], -gradient * HARTREE / BOHR)
        np.testing.assert_allclose(frame.labels["dipole"], group["scf_dipole"][2] * BOHR)
        np.testing.assert_array_equal(frame.arrays["mbis_charges"], group["mbis_charges"][2, :, 0])
        assert frame.info["formation_energy"] == 2.0
        assert frame.info["subset"] == "SPICE test"


def test_units_of_the_user_win(tmp_path):
    write_spice(tmp_path / "a.h5")
    frame = read(tmp_path / "a.h5", units=Units(energy="eV", length="Å"))[0]
    with h5py.File(tmp_path / "a.h5") as file:
        assert float(frame.labels["energy"]) == file["ion/dft_total_energy"][0]
        np.testing.assert_allclose(frame.labels["forces"], -file["ion/dft_total_gradient"][0].astype(float))


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("[NH4+]", 1),
        ("[Fe+3:2]", 3),
        ("[O--]", -2),
        ("[O-2]", -2),
        ("CC[N+:4](C)[O-:5]", 0),
        ("[H:1][C@@:2]", 0),
    ],
)
def test_formal_charge_of_smiles(smiles, charge):
    assert formal_charge(smiles) == charge


def test_ani_1x_layout_skips_what_was_not_computed(tmp_path):
    with h5py.File(tmp_path / "ani1x.h5", "w") as file:
        group = file.create_group("H2")
        group["atomic_numbers"] = np.array([1, 1], dtype=np.uint8)
        group["coordinates"] = RNG.normal(size=(3, 2, 3))
        group["wb97x_dz.energy"] = np.array([-1.0, -1.1, -1.2])
        forces = RNG.normal(size=(3, 2, 3))
        forces[1] = np.nan
        group["wb97x_dz.forces"] = forces
        group["ccsd(t)_cbs.energy"] = np.array([np.nan, -1.3, np.nan])
    frames = read(tmp_path / "ani1x.h5")
    assert ["forces" in f.labels for f in frames] == [True, False, True]
    assert ["ccsd(t)_cbs.energy" in f.info for f in frames] == [False, True, False]
    np.testing.assert_allclose(frames[0].labels["forces"], forces[0] * HARTREE)
    best = read(tmp_path / "ani1x.h5", keys=KeyMap(energy="ccsd(t)_cbs.energy"))
    assert ["energy" in f.labels for f in best] == [False, True, False]


def mace_value(group, key, value):
    group[key] = value if value is not None else "None"


def write_mace(path):
    """The layout of MACE 0.3 (save_configurations_as_HDF5), values absent as the text "None"."""
    with h5py.File(path, "w") as file:
        file.attrs["drop_last"] = False
        for batch in range(2):
            root = file.create_group(f"config_batch_{batch}")
            for j in range(11):
                group = root.create_group(f"config_{j}")
                mace_value(group, "atomic_numbers", np.array([8, 1, 1]))
                mace_value(group, "positions", RNG.normal(size=(3, 3)))
                properties = group.create_group("properties")
                weights = group.create_group("property_weights")
                for key, value, weight in (
                    ("energy", 100.0 * batch + j, 1.0),
                    ("forces", RNG.normal(size=(3, 3)), 1.0),
                    ("stress", np.arange(6.0), float(batch)),
                    ("dipole", RNG.normal(size=3), 1.0),
                    ("virials", None, 0.0),
                    ("total_charge", -1.0, 1.0),
                    ("total_spin", 2.0, 1.0),
                ):
                    mace_value(properties, key, value)
                    weights[key] = weight
                mace_value(group, "cell", 5 * np.eye(3))
                mace_value(group, "pbc", np.array([True, True, True]))
                mace_value(group, "weight", 1.0)
                mace_value(group, "config_type", "Default")


def test_mace_layout(tmp_path):
    write_mace(tmp_path / "mace.h5")
    frames = read(tmp_path / "mace.h5")
    assert [float(f.labels["energy"]) for f in frames] == [*range(11), *range(100, 111)]
    assert sorted(frames[0].labels) == ["dipole", "energy", "forces"]  # a weight of zero is no label
    assert frames[11].labels["stress"].tolist() == [0, 1, 2, 3, 4, 5]
    assert (frames[0].charge, frames[0].spin, frames[0].info) == (-1.0, 2, {"config_type": "Default"})
    assert frames[0].pbc.all() and frames[0].cell[2, 2] == 5


def test_mace_file_written_by_mace(tmp_path):
    mace_data = pytest.importorskip("mace.data")
    from ase import Atoms

    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]], info={"REF_energy": -3.0})
    configuration = mace_data.config_from_atoms(atoms, key_specification=mace_data.KeySpecification.from_defaults())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        mace_data.save_configurations_as_HDF5([configuration], 0, file)
    assert float(read(tmp_path / "a.h5")[0].labels["energy"]) == -3.0


def test_hdf5_without_a_known_layout(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(DataError, match=r"no known layout .*inside: weights"):
        read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["numbers"], file["positions"] = np.ones(2), np.zeros((4, 3, 3))
    with pytest.raises(DataError, match=r"'numbers' has shape \(2,\), positions \(4, 3, 3\)"):
        read(tmp_path / "b.h5")
    write_store(tmp_path / "c.h5", [Structure([1], [[0, 0, 0]])])
    with pytest.raises(DataError, match="a tesseral store is in eV and Å by construction"):
        read(tmp_path / "c.h5", units=Units(energy="Ha"))


def test_padded_arrays(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["numbers"] = np.array([[1, 8, 0], [1, 8, 1]])
        file["positions"] = np.arange(18.0).reshape(2, 3, 3)
        file["forces"] = np.arange(18.0).reshape(2, 3, 3)
        file["energy"] = [1.0, 2.0]
        file["cell"] = np.stack([np.eye(3) * 4, np.eye(3) * 5])
    short, full = read(tmp_path / "a.h5")
    assert short.numbers.tolist() == [1, 8]
    assert short.labels["forces"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (full.n_atoms, full.cell[0, 0], full.pbc.all()) == (3, 5.0, True)


def test_sgdml_of_the_shared_data(shared_data):
    path = shared_data("ethanol_ccsdt/ethanol_ccsd_t-train.npz")
    frames = read(path)
    with np.load(path) as data:
        kcal = 0.043364104241800934
        assert float(frames[3].labels["energy"]) == pytest.approx(data["E"][3, 0] * kcal, rel=1e-12)
        np.testing.assert_allclose(frames[3].labels["forces"], data["F"][3] * kcal)
        np.testing.assert_array_equal(frames[3].positions, data["R"][3])
    assert len(frames) == 1000
    assert frames[0].info["theory"] == "Psi4: CCSD(T), cc-pVTZ"


def test_rmd17_npz(tmp_path, caplog):
    np.savez(
        tmp_path / "rmd17_x.npz",
        nuclear_charges=np.array([8, 1], dtype=np.uint8),
        coords=np.ones((3, 2, 3)),
        energies=np.array([1.0, 2.0, 3.0]),
        forces=np.ones((3, 2, 3)),
        old_indices=np.arange(3),
    )
    frames = read(tmp_path / "rmd17_x.npz")
    assert float(frames[1].labels["energy"]) == pytest.approx(2 * 0.043364104241800934)
    assert frames[2].info["old_indices"] == 2
    assert "rMD17 layout, energy kcal/mol" in caplog.text


def test_npz_that_is_not_data(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="no known layout; inside: x"):
        read(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", R=np.array([object()], dtype=object), z=np.ones(1))
    with pytest.raises(DataError, match="holds pickled"):
        read(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(DataError, match="the archive is damaged or truncated"):
        read(tmp_path / "c.npz")


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.xyz"])
def test_pickles_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="a pickled file is never opened"):
        read(tmp_path / name)


def labelled_atoms():
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms("OH2", RNG.normal(size=(3, 3)), cell=[5, 6, 7], pbc=(True, False, True))
    atoms.calc = SinglePointCalculator(
        atoms, energy=-1.25, forces=RNG.normal(size=(3, 3)), stress=np.arange(6.0), magmoms=np.ones(3)
    )
    return atoms


def assert_labelled(frame, atoms):
    np.testing.assert_allclose(frame.positions, atoms.positions)
    np.testing.assert_array_equal(frame.pbc, atoms.pbc)
    assert float(frame.labels["energy"]) == -1.25
    np.testing.assert_allclose(frame.labels["forces"], atoms.calc.results["forces"])
    np.testing.assert_allclose(frame.labels["stress"], np.arange(6.0))


@pytest.mark.parametrize("name", ["a.traj", "a.db", "a.json", "a.extxyz"])
def test_files_written_by_ase(tmp_path, name):
    import ase.io

    atoms = [labelled_atoms(), labelled_atoms()]
    ase.io.write(tmp_path / name, atoms)
    frames = read(tmp_path / name)
    assert len(frames) == 2
    for frame, before in zip(frames, atoms, strict=True):
        assert_labelled(frame, before)
        np.testing.assert_allclose(frame.labels["magmoms"], 1.0)


def test_ase_db_keeps_pairs_and_data(tmp_path):
    from ase.db import connect

    with connect(tmp_path / "a.db") as database:
        database.write(labelled_atoms(), kind="bulk", data={"charge": -1, "grid": np.arange(4)})
    frame = read(tmp_path / "a.db")[0]
    assert frame.info["kind"] == "bulk"
    assert frame.charge == -1.0
    np.testing.assert_array_equal(frame.info["grid"], np.arange(4))


@pytest.mark.parametrize("name", ["POSCAR", "a.cif", "a.vasp"])
def test_crystals_written_by_ase(tmp_path, name):
    import ase.build
    import ase.io

    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    ase.io.write(tmp_path / name, atoms)
    frame = read(tmp_path / name)[0]
    frame.validate()
    assert frame.formula == "Cl4Na4"
    assert frame.pbc.all()
    assert frame.volume == pytest.approx(5.6**3, rel=1e-4)


def test_cif_written_by_pymatgen_and_a_disordered_one(tmp_path):
    pmg = pytest.importorskip("pymatgen.core")
    lattice = pmg.Lattice.cubic(4.2)
    pmg.Structure.from_spacegroup("Fm-3m", lattice, ["Mg", "O"], [[0] * 3, [0.5] * 3]).to(str(tmp_path / "a.cif"))
    assert read(tmp_path / "a.cif")[0].formula == "Mg4O4"
    pmg.Structure(lattice, [{"Mg": 0.5, "Ca": 0.5}], [[0, 0, 0]]).to(str(tmp_path / "b.cif"))
    with pytest.raises(DataError, match=r"b.cif, frame 0: site \d+ is partly occupied"):
        read(tmp_path / "b.cif")


def test_vasp_of_the_shared_data(shared_data, caplog):
    outcar = read(shared_data("format_samples/vasp/OUTCAR.h2o.md.10.gz"))
    vasprun = read(shared_data("format_samples/vasp/vasprun.h2o.md.10.xml.gz"))
    assert len(outcar) == len(vasprun) == 10
    for a, b in zip(outcar, vasprun, strict=True):
        np.testing.assert_allclose(a.labels["forces"], b.labels["forces"], atol=1e-5)
        np.testing.assert_allclose(a.labels["stress"], b.labels["stress"], atol=1e-6)
        assert float(a.labels["energy"]) == pytest.approx(float(b.labels["energy"]), abs=1e-6)
    unconverged = read(shared_data("format_samples/vasp/OUTCAR.ch4.unconverged.gz"))
    assert [f.info["scf_converged"] for f in unconverged] == [False, False, True]
    assert "2 of 3 steps did not converge" in caplog.text


def test_codes_of_the_shared_data(shared_data):
    aims = read(shared_data("format_samples/fhi_aims/out_scf.gz"))
    gaussian = read(shared_data("format_samples/gaussian/aimd_gaussian_CH4_output.gz"))
    assert "energy" in aims[0].labels and "forces" in gaussian[0].labels
    with pytest.raises(DataError, match="the LAMMPS dump has no column `element`"):
        read(shared_data("format_samples/lammps/test.lammpstrj.gz"))


def test_lammps_dump_with_elements(tmp_path):
    (tmp_path / "a.lammpstrj").write_text(
        "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 4\n0 4\n0 4\n"
        "ITEM: ATOMS id type element x y z fx fy fz\n1 1 W 0 0 0 1 0 0\n2 2 Be 1 1 1 -1 0 0\n"
    )
    frame = read(tmp_path / "a.lammpstrj")[0]
    assert frame.symbols == ["W", "Be"]
    assert sorted(frame.labels) == ["forces"]  # ASE invents an energy of zero


def test_what_nobody_knows(tmp_path):
    (tmp_path / "a.thing").write_text("once upon a time")
    with pytest.raises(DataError, match=r"a\.thing: the format is not recognised"):
        read(tmp_path / "a.thing")
    (tmp_path / "OUTCAR").write_text("broken")
    with pytest.raises(DataError, match=r"(?s)OUTCAR: .*(ASE cannot read it as vasp-out|no frames)"):
        open_source(tmp_path / "OUTCAR")
    with pytest.raises(DataError, match="this is a folder"):
        read(tmp_path)


def write_lmdb(path, values, metadata=True):
    """As fairchem's LMDBDatabase: rows of an ASE database, JSON in zlib, under decimal ids."""
    lmdb = pytest.importorskip("lmdb")
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False)
    with environment.begin(write=True) as transaction:
        for number, value in enumerate(values, start=1):
            transaction.put(str(number).encode(), value)
        if metadata:
            transaction.put(b"nextid", zlib.compress(json.dumps(len(values) + 1).encode()))
            transaction.put(b"metadata", zlib.compress(b"{}"))
    environment.close()


def lmdb_row(number):
    row = {
        "numbers": [8, 1],
        "positions": RNG.normal(size=(2, 3)).tolist(),
        "cell": (4 * np.eye(3)).tolist(),
        "pbc": [True, True, False],
        "energy": float(number),
        "forces": RNG.normal(size=(2, 3)).tolist(),
        "stress": list(range(6)),
        "tags": [0, 1],
        "constraints": json.dumps([{"name": "FixAtoms", "kwargs": {"indices": [1]}}]),
        "unique_id": "abc",
        "ctime": 1.0,
        "key_value_pairs": {"kind": "slab"},
        "data": {"charge": 1, "spin": 2, "grid": {"__ndarray__": [[2], "int64", [3, 4]]}},
    }
    return row, zlib.compress(json.dumps(row).encode())


def test_fairchem_lmdb(tmp_path):
    rows = [lmdb_row(i) for i in range(12)]
    write_lmdb(tmp_path / "a.aselmdb", [value for _, value in rows])
    source = open_source(tmp_path / "a.aselmdb")
    assert [float(f.labels["energy"]) for f in source] == list(range(12))  # ids in numeric order
    frame = pickle.loads(pickle.dumps(source))[7]
    np.testing.assert_array_equal(frame.labels["forces"], rows[7][0]["forces"])
    assert (frame.charge, frame.spin, frame.info["kind"]) == (1.0, 2, "slab")
    assert frame.arrays["tags"].tolist() == [0, 1]
    assert frame.info["grid"].tolist() == [3, 4]
    assert frame.to_ase().constraints[0].index.tolist() == [1]
    assert len(read(tmp_path / "a.aselmdb")) == 12


def _energy(source, index):
    return float(source[index].labels["energy"])


def test_lmdb_in_forked_workers(tmp_path):
    write_lmdb(tmp_path / "a.aselmdb", [lmdb_row(i)[1] for i in range(6)])
    source = open_source(tmp_path / "a.aselmdb")
    assert _energy(source, 0) == 0.0
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_energy, [source] * 6, range(6))) == list(range(6))


def test_a_folder_of_lmdbs(tmp_path):
    for part in range(3):
        write_lmdb(tmp_path / f"data.{part:04d}.aselmdb", [lmdb_row(10 * part + i)[1] for i in range(2)])
    source = open_source(tmp_path)
    assert [float(f.labels["energy"]) for f in source] == [0, 1, 10, 11, 20, 21]
    assert source.n_atoms.tolist() == [2] * 6
    np.savez(tmp_path / "metadata.npz", natoms=np.full(6, 9))
    assert open_source(tmp_path).n_atoms.tolist() == [9] * 6  # listed sizes are trusted, no row is read


@pytest.mark.parametrize("pack", [lambda b: b, zlib.compress])
def test_pickled_lmdb_is_refused_by_name(tmp_path, pack):
    write_lmdb(tmp_path / "old.lmdb", [pack(pickle.dumps({"pos": 1}))], metadata=False)
    with pytest.raises(DataError, match=r"holds pickled records .*never opened"):
        read(tmp_path / "old.lmdb")


def test_damaged_lmdb(tmp_path):
    write_lmdb(tmp_path / "a.aselmdb", [b"nonsense"])
    with pytest.raises(DataError, match="frame 0: damaged record"):
        read(tmp_path / "a.aselmdb")
    (tmp_path / "b.aselmdb").write_bytes(b"nothing at all")
    with pytest.raises(DataError, match="cannot be opened as LMDB"):
        read(tmp_path / "b.aselmdb")


def test_sdf_of_the_shared_data(shared_data):
    frame = read(shared_data("pockets/5ndu/ligand.sdf"))[0]
    frame.validate()
    assert frame.formula == "C36H42ClN5O7"
    assert len(frame.bonds) > frame.n_atoms  # four rings
