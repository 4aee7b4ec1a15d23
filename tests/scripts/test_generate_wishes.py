"""`tesseral generate` aiming at properties and inside pockets, on tiny untrained models."""

import json

import numpy as np
import pytest
import torch
from rdkit import Chem

from tesseral.datasets.structure import Structure
from tesseral.datasets.write import write
from tesseral.generative import save
from tesseral.generative.conditions import Conditions
from tesseral.generative.data import MoleculeOptions, embedded, prepared
from tesseral.generative.model import EqgatDiff
from tesseral.generative.pocket import PocketFacts
from tesseral.generative.vocabulary import Vocabulary
from tesseral.scripts.main import main

CONFIG = {"network": {"scalars": 16, "vectors": 4, "edges": 4, "layers": 2}, "diffusion": {"steps": 4}}
RESIDUE = """\
ATOM  {0:5d}  N   GLY A{1:4d}    {2:8.3f}   0.000   0.000  1.00  0.00           N
ATOM  {0:5d}  CA  GLY A{1:4d}    {2:8.3f}   1.500   0.000  1.00  0.00           C
ATOM  {0:5d}  C   GLY A{1:4d}    {2:8.3f}   3.000   0.000  1.00  0.00           C
"""


def molecules():
    found = []
    for k, smiles in enumerate(("CC#N", "CCO", "CCN")):
        molecule = prepared(embedded(smiles), MoleculeOptions(hydrogens="remove"))
        molecule.info["gap"] = 5.0 + k
        found.append(molecule)
    return found


def saved(path, **more):
    torch.manual_seed(0)
    model = EqgatDiff.from_config(CONFIG, Vocabulary.from_structures(molecules()), **more)
    return str(save(model, path))


@pytest.fixture
def steered(tmp_path):
    return saved(tmp_path / "s.safetensors", conditions=Conditions.from_structures(molecules(), ["gap"]))


@pytest.fixture
def in_pockets(tmp_path):
    trained = molecules()
    for molecule in trained:
        molecule.info["pocket"] = Structure([7, 6, 6] * 3, np.random.default_rng(0).normal(size=(9, 3)))
    return saved(tmp_path / "p.safetensors", pockets=PocketFacts.from_structures(trained, 4.0))


@pytest.fixture
def protein(tmp_path):
    """Ten residues in a row, 4 Å apart."""
    path = tmp_path / "protein.pdb"
    path.write_text("".join(RESIDUE.format(k + 1, k + 1, 4.0 * k) for k in range(10)) + "END\n")
    return str(path)


def run(capsys, *command):
    code = main(["generate", *map(str, command)])
    return code, capsys.readouterr()


def records(path):
    """Molecules of a file and of those that failed beside it."""
    return [
        mol
        for name in (path, path.with_name(f"{path.stem}.failed.sdf"))
        if name.exists()
        for mol in Chem.SDMolSupplier(str(name), sanitize=False)
    ]


def test_values_that_were_asked_for_are_written(steered, tmp_path, capsys):
    out, report = tmp_path / "x.sdf", tmp_path / "m.json"
    code, shown = run(capsys, steered, "-n", 6, "-o", out, "--property", "gap=5.25", "--json", report)
    assert code == 0
    assert "warning" not in shown.err
    assert {mol.GetDoubleProp("wanted_gap") for mol in records(out)} == {5.25}
    assert json.loads(report.read_text())["sampling"]["properties"] == {"gap": 5.25}
    code, shown = run(capsys, steered, "-n", 6, "-o", tmp_path / "y.sdf", "--property", "gap=50")
    assert code == 0
    assert "warning: gap=50 lies outside the training data (5 to 7)" in shown.err
    run(capsys, steered, "-n", 6, "-o", tmp_path / "z.sdf")
    assert {mol.GetDoubleProp("wanted_gap") for mol in records(tmp_path / "z.sdf")} <= {5.0, 6.0, 7.0}


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        ("homo=1", "no property 'homo'; it was trained with gap"),
        ("gap", "expected NAME=NUMBER"),
        ("gap=high", "expected NAME=NUMBER"),
        ("gap=nan", "finite"),
    ],
)
def test_property_mistakes_are_said(steered, tmp_path, capsys, wish, text):
    code, shown = run(capsys, steered, "-n", 1, "-o", tmp_path / "x.sdf", "--property", wish)
    assert code == 2
    assert text in shown.err
    assert not (tmp_path / "x.sdf").exists()


def test_molecules_lie_in_the_frame_of_the_protein(in_pockets, protein, tmp_path, capsys):
    out, numbers = tmp_path / "x.sdf", tmp_path / "m.json"
    where = [20.0, 1.5, 3.0]
    code, shown = run(
        capsys, in_pockets, "-n", 8, "-o", out, "--pocket", protein, "--ligand-center", *where, "--json", numbers
    )
    assert code == 0
    assert "nearer than 2.5 Å" in shown.out
    middle = np.mean([mol.GetConformer().GetPositions().mean(0) for mol in records(out)], axis=0)
    assert np.linalg.norm(middle - [20.0, 1.5, 0.0]) < 3.0  # noise around the centroid of the residues there
    by_center = json.loads(numbers.read_text())["pocket"]
    assert by_center["pocket_atoms"] == 9
    ligand = prepared(embedded("CCO"), MoleculeOptions())
    ligand.positions += np.array(where) - ligand.positions.mean(0)
    write(tmp_path / "ref.sdf", [ligand])
    command = [in_pockets, "-n", 2, "-o", tmp_path / "y.sdf", "--pocket", protein, "--json", tmp_path / "n.json"]
    code, shown = run(capsys, *command, "--reference-ligand", tmp_path / "ref.sdf")
    assert code == 0
    assert 3 <= json.loads((tmp_path / "n.json").read_text())["pocket"]["pocket_atoms"] <= 15


def test_pocket_mistakes_are_said(in_pockets, steered, protein, tmp_path, capsys):
    out = ["-n", 1, "-o", tmp_path / "x.sdf"]
    center = ["--ligand-center", 0, 0, 0]
    for command, text in (
        ([in_pockets, *out], "in pockets: give one"),
        ([in_pockets, *out, *center], "give it by --pocket"),
        ([in_pockets, *out, "--pocket", protein], "30 heavy atoms, the pockets of the training had up to 9"),
        ([in_pockets, *out, "--pocket", protein, *center, "--reference-ligand", "l.sdf"], "not by both"),
        ([in_pockets, *out, "--pocket", protein, "--ligand-center", 99, 0, 0], "nearest atom is 63.0 Å"),
        ([steered, *out, "--pocket", protein, *center], "without pockets"),
        ([in_pockets, *out, "--pocket", tmp_path / "no.pdb", *center], "cannot read the pocket"),
    ):
        code, shown = run(capsys, *command)
        assert code == 2
        assert text in shown.err
