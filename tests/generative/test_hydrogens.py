"""Implicit hydrogens as RDKit counts them, and drawn molecules that carry them."""

import numpy as np
import pytest

from tesseral.datasets.structure import Structure
from tesseral.generative.hydrogens import implicit_hydrogens

SMILES = (
    "CC#N", "C[N+](C)(C)C", "C[N+](=O)[O-]", "CS(=O)(=O)N", "CS(C)=O", "OP(=O)(O)O", "C[Si](C)(C)O", "CB(O)O",
    "C[Se]C", "FC(Cl)Br", "CI", "[NH3+]CC(=O)[O-]", "C[S+](C)C", "O=C=O", "c1ccccc1", "C1=CC=CN1", "[C-]#[O+]",
)  # fmt: skip


@pytest.mark.parametrize("smiles", SMILES)
def test_hydrogens_of_kekule_structures_are_those_of_rdkit(smiles):
    from rdkit import Chem

    mol = Chem.MolFromSmiles(smiles)
    expected = [atom.GetTotalNumHs() for atom in mol.GetAtoms()]
    Chem.Kekulize(mol, clearAromaticFlags=True)
    mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))
    structure = Structure.from_rdkit(mol)
    structure.arrays.pop("implicit_hydrogens", None)
    structure.arrays.pop("explicit_hydrogens", None)
    assert implicit_hydrogens(structure).tolist() == expected


def test_aromatic_bonds_tell_the_hydrogens_of_carbon_only():
    from rdkit import Chem

    for smiles in ("c1ccccc1C", "c1ccncc1", "c1ccsc1", "c1ccc2ccccc2c1"):
        mol = Chem.MolFromSmiles(smiles)
        mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))
        structure = Structure.from_rdkit(mol)
        assert implicit_hydrogens(structure).tolist() == [atom.GetTotalNumHs() for atom in mol.GetAtoms()]


def test_no_hydrogens_beyond_the_usual_valences():
    crowded = Structure([6] * 6, np.eye(6, 3), bonds=[[0, k, 1] for k in range(1, 6)])
    assert implicit_hydrogens(crowded).tolist() == [0, 3, 3, 3, 3, 3]
    assert implicit_hydrogens(Structure([10], np.zeros((1, 3)))).tolist() == [0]
    assert implicit_hydrogens(Structure([8], np.zeros((1, 3)))).tolist() == [2]


def test_drawn_molecules_carry_their_hydrogens(small):
    from rdkit import Chem

    from tesseral.generative.chemistry import judge

    drawn = small.model(small.structures()).sample(10, atoms=2, seed=1)
    valid = [(s, v) for s in drawn if (v := judge(s, implicit_hydrogens=True)).valid]
    assert valid
    for structure, verdict in valid:
        assert Chem.MolToSmiles(structure.to_rdkit()) == verdict.smiles
    with_hydrogens = small.model(small.structures(hydrogens=True))
    assert "implicit_hydrogens" not in with_hydrogens.sample(1, seed=1)[0].arrays
