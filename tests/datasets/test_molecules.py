"""Chemistry kept: RDKit molecules, pymatgen species, SD files, splits by scaffold."""

import numpy as np
import pytest

from tesseral.datasets import Structure, read, split, write
from tesseral.datasets.errors import DataError


def embedded(smiles: str):
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    mol = chem.AddHs(chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    return mol


@pytest.mark.parametrize(
    "smiles",
    [
        "CCO",
        "c1ccccc1",
        "C[N+](C)(C)C",
        "[O-]C(=O)c1ccncc1",
        "C#N",
        "C[C@H](N)C(=O)O",
        "F/C=C/F",
        "c1cc[nH]c1",
        "[CH3]",
    ],
)
def test_rdkit_molecules_come_back_the_same(smiles):
    from rdkit import Chem

    mol = embedded(smiles)
    back = Structure.from_rdkit(mol).to_rdkit()
    assert Chem.MolToSmiles(back) == Chem.MolToSmiles(mol)
    np.testing.assert_array_equal(back.GetConformer().GetPositions(), mol.GetConformer().GetPositions())


def test_what_a_structure_knows_of_a_molecule():
    structure = Structure.from_rdkit(embedded("[O-]c1ccccc1"))
    assert structure.charge == -1.0
    assert structure.arrays["formal_charges"][0] == -1
    assert sorted(set(structure.bonds[:, 2].tolist())) == [1, 4]
    assert (structure.bonds[:, 2] == 4).sum() == 6


def test_implicit_hydrogens_isotopes_maps_and_dative_bonds_survive():
    from rdkit import Chem

    mol = Chem.MolFromSmiles("[13CH3:5]C[NH2]->[Fe]")
    mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))
    structure = Structure.from_rdkit(mol)
    assert structure.arrays["isotopes"].tolist() == [13, 0, 0, 0]
    back = structure.to_rdkit(sanitize=False)
    assert Chem.MolToSmiles(back) == Chem.MolToSmiles(mol)
    assert structure.bonds[2].tolist() == [2, 3, 0]


def test_molecules_that_cannot_be():
    from rdkit import Chem

    with pytest.raises(DataError, match="no conformer: embed it first"):
        Structure.from_rdkit(Chem.MolFromSmiles("CC"))
    star = Chem.MolFromSmiles("*C")
    star.AddConformer(Chem.Conformer(2))
    with pytest.raises(DataError, match="atom 0 is a dummy"):
        Structure.from_rdkit(star)
    positions = np.random.default_rng(0).normal(size=(6, 3))
    carbon = Structure([6, *[1] * 5], positions, bonds=[[0, i, 1] for i in range(1, 6)])
    with pytest.raises(DataError, match="RDKit refuses the bonds of CH5"):
        carbon.to_rdkit()
    assert carbon.to_rdkit(sanitize=False).GetNumBonds() == 5


def test_sd_file_there_and_back(tmp_path):
    structure = Structure.from_rdkit(embedded("[O-]C(=O)CC#N"))
    structure.positions = structure.positions.round(4)  # the precision of the format
    structure.labels = {"energy": np.array(-1.0), "forces": np.ones((structure.n_atoms, 3))}
    structure.info = {"name": "anion", "source": "test", "list": [1, 2]}
    assert write(tmp_path / "a.sdf", [structure, structure]) == 2
    frames = read(tmp_path / "a.sdf")
    assert len(frames) == 2
    np.testing.assert_array_equal(frames[1].positions, structure.positions)
    np.testing.assert_array_equal(frames[1].bonds, structure.bonds)
    assert frames[1].charge == -1.0
    assert frames[1].info == structure.info
    np.testing.assert_array_equal(frames[1].labels["forces"], structure.labels["forces"])


@pytest.mark.parametrize("smiles", ["F/C=C/Cl", "F/C=C\\Cl", "C[C@H](N)C(=O)O", "C[C@H](F)/C=N/O"])
def test_sd_file_keeps_stereo(tmp_path, smiles):
    chem = pytest.importorskip("rdkit.Chem")
    write(tmp_path / "a.sdf", Structure.from_rdkit(embedded(smiles)))
    (mol,) = chem.SDMolSupplier(str(tmp_path / "a.sdf"))
    assert chem.MolToSmiles(mol) == chem.CanonSmiles(smiles)


def test_aromatic_bonds_without_kekule_form_are_written_as_they_are(tmp_path):
    ring = [[k, (k + 1) % 5, 4] for k in range(5)]
    structure = Structure([6] * 5, np.eye(5, 3), bonds=ring)
    benzene = Structure.from_rdkit(embedded("c1ccccc1"))
    assert write(tmp_path / "a.sdf", [structure, benzene]) == 2
    first, second = read(tmp_path / "a.sdf")
    np.testing.assert_array_equal(first.bonds, ring)
    assert set(second.bonds[:, 2]) == {1, 2}


def test_a_broken_sd_record_is_named(tmp_path):
    write(tmp_path / "a.sdf", Structure([6], [[0, 0, 0]], bonds=np.zeros((0, 3))))
    text = (tmp_path / "a.sdf").read_text()
    (tmp_path / "a.sdf").write_text(text + text.replace("  1  0", "  x  y", 1))
    with pytest.raises(DataError, match=r"a\.sdf, frame 1: RDKit cannot parse this record"):
        read(tmp_path / "a.sdf")


def test_pymatgen_species_properties_and_partial_pbc():
    pmg = pytest.importorskip("pymatgen.core")
    species = [pmg.Species("Fe", 2, spin=4), pmg.Species("O", -2, spin=0)]
    source = pmg.Structure(
        pmg.Lattice([[3, 0, 0], [0, 3, 0], [0, 0, 20]], pbc=(True, True, False)),
        species, [[0, 0, 0], [0.5, 0.5, 0.1]], charge=1, labels=["Fe1", "O1"],
        site_properties={"magmom": [4.0, 0.0]}, properties={"task": "a"},
    )  # fmt: skip
    structure = Structure.from_pymatgen(source)
    assert structure.pbc.tolist() == [True, True, False]
    assert structure.arrays["oxidation_states"].tolist() == [2, -2]
    assert structure.charge == 1.0
    back = structure.to_pymatgen()
    assert back == source
    assert back.labels == source.labels
    assert back.charge == 1
    assert back.site_properties["magmom"] == [4.0, 0.0]
    assert back.properties["task"] == "a"


def test_pymatgen_molecule_charge_and_spin():
    pmg = pytest.importorskip("pymatgen.core")
    molecule = pmg.Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]], charge=-1, spin_multiplicity=1)
    structure = Structure.from_pymatgen(molecule)
    assert (structure.charge, structure.spin) == (-1.0, 1)
    assert structure.to_pymatgen() == molecule
    structure.spin = 2
    with pytest.raises(DataError, match=r"pymatgen refuses HO: .*mend charge or spin"):
        structure.to_pymatgen()


def test_pymatgen_disorder_is_refused():
    pmg = pytest.importorskip("pymatgen.core")
    with pytest.raises(DataError, match="is partly occupied"):
        Structure.from_pymatgen(pmg.Structure(pmg.Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]]))


def chain(n: int, **info) -> Structure:
    return Structure([6] * n, np.arange(3.0 * n).reshape(n, 3), info=info)


FRAMES = [chain(1 + i % 10, kind="abc"[i % 3]) for i in range(100)]


def covers(parts, count):
    return sorted(np.concatenate(parts).tolist()) == list(range(count))


def test_random_split():
    parts = split(FRAMES, [0.8, 0.1, 0.1], seed=3)
    assert [len(p) for p in parts] == [80, 10, 10]
    assert covers(parts, 100)
    again = split(FRAMES, [0.8, 0.1, 0.1], seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[1], split(FRAMES, [0.8, 0.1, 0.1], seed=4)[1])


@pytest.mark.parametrize(("by", "key"), [("formula", lambda s: s.formula), ("kind", lambda s: s.info["kind"])])
def test_no_group_is_torn_apart(by, key):
    parts = split(FRAMES, [0.6, 0.4], by=by, seed=1)
    assert covers(parts, 100)
    groups = [{key(FRAMES[i]) for i in part} for part in parts]
    assert not groups[0] & groups[1]
    assert abs(len(parts[0]) - 60) <= 10


def test_scaffold_split_keeps_ring_systems_together():
    smiles = ["c1ccccc1C", "c1ccccc1CC", "c1ccncc1C", "c1ccncc1", "CCCC", "CCO", "C1CCCC1C", "C1CCCC1"]
    frames = [chain(2, smiles=s) for s in smiles] + [Structure.from_rdkit(embedded("c1ccccc1O"))]
    parts = split(frames, [0.5, 0.5], by="scaffold", seed=0)
    part_of = {int(i): number for number, part in enumerate(parts) for i in part}
    assert part_of[0] == part_of[1] == part_of[8]
    assert part_of[2] == part_of[3]
    assert part_of[4] == part_of[5]
    assert part_of[6] == part_of[7]


def test_splits_that_cannot_be():
    with pytest.raises(DataError, match="give positive numbers that sum to 1"):
        split(FRAMES, [0.8, 0.3])
    with pytest.raises(DataError, match="frame 0: no key 'colour' in info to split by; present: kind"):
        split(FRAMES, [0.5, 0.5], by="colour")
    with pytest.raises(DataError, match="a scaffold needs bonds or info"):
        split(FRAMES, [0.5, 0.5], by="scaffold")
    with pytest.raises(DataError, match=r"part 1 \(fraction 0.1\) of 2 frames by formula is empty"):
        split([chain(2), chain(2)], [0.9, 0.1], by="formula")


def test_write_refuses_to_overwrite_and_cleans_up(tmp_path):
    write(tmp_path / "a.xyz", chain(2))
    with pytest.raises(DataError, match=r"a\.xyz: exists: overwrite it"):
        write(tmp_path / "a.xyz", chain(3))
    with pytest.raises(DataError, match="ASE cannot write this"):
        write(tmp_path / "a.nothing", chain(2))

    def failing():
        yield chain(2)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(tmp_path / "b.xyz", failing())
    assert [p.name for p in tmp_path.iterdir()] == ["a.xyz"]


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.traj"])
def test_write_through_ase(tmp_path, name):
    crystal = Structure([11, 17], [[0, 0, 0], [2, 2, 2]], np.eye(3) * 4, True)
    write(tmp_path / name, crystal)
    back = read(tmp_path / name)[0]
    assert back.formula == "ClNa"
    np.testing.assert_allclose(back.cell, crystal.cell, atol=1e-6)
