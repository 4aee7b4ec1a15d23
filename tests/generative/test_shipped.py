"""The generator that comes with the package: its card, and molecules judged by RDKit alone."""

import pytest
from rdkit import Chem, RDLogger

from tesseral.generative import generate, load, shipped
from tesseral.training.shipped import weights

NAME = "eqgat-qm9-noh"


def test_card_says_what_a_user_must_know():
    header = shipped()[NAME]
    assert all(header["card"][key] for key in ("summary", "description", "data", "licence", "not_for"))
    assert set(header["metrics"]["steps"]) == {"25", "50", "100"}
    assert len(header["metrics"]["seeds"]) == 3
    assert (weights("generative") / f"{NAME}.md").read_text(encoding="utf-8").startswith(f"# {NAME}")


@pytest.mark.parametrize("steps", [25, 100])
def test_drawn_molecules_are_valid_for_rdkit(steps):
    RDLogger.DisableLog("rdApp.*")
    molecules = [s.to_rdkit(sanitize=False) for s in generate(load(NAME), 60, steps=steps, seed=11)]
    valid = set()
    for mol in molecules:
        for atom in mol.GetAtoms():
            atom.SetNoImplicit(False)
        if Chem.SanitizeMol(mol, catchErrors=True) == Chem.SANITIZE_NONE and len(Chem.GetMolFrags(mol)) == 1:
            valid.add(Chem.MolToSmiles(mol))
    assert len(valid) >= 48  # distinct ones, of 60
