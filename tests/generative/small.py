"""A few real molecules with charges, a triple bond and an aromatic ring, and a small model of them."""

import torch

from tesseral.datasets.structure import Structure
from tesseral.generative.model import EqgatDiff
from tesseral.generative.vocabulary import Vocabulary

SMILES = ("CC#N", "NCC=O", "C[N+](=O)[O-]", "c1ccoc1")


def structures(smiles=SMILES, hydrogens=False):
    """Molecules with ETKDG geometries."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    found = []
    for text in smiles:
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        AllChem.EmbedMolecule(mol, randomSeed=1)
        found.append(Structure.from_rdkit(mol if hydrogens else Chem.RemoveHs(mol)))
    return found


def model(molecules, *, steps=25, seed=0, norm="corrected", **network):
    """An untrained generator of the molecules' vocabulary."""
    sizes = {"scalars": 24, "vectors": 8, "edges": 8, "layers": 3, "norm": norm, **network}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {"network": sizes, "diffusion": {"steps": steps}}
        return EqgatDiff.from_config(config, Vocabulary.from_structures(molecules))
