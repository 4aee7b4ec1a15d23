"""`tesseral generate` and the training of a generator from the command line, on a tiny model."""

import json

import numpy as np
import pytest
from rdkit import Chem

from tesseral import read
from tesseral.datasets.write import write
from tesseral.generative import load, save
from tesseral.generative.data import MoleculeOptions, embedded, prepared
from tesseral.generative.geometry import Distributions
from tesseral.generative.model import EqgatDiff
from tesseral.generative.vocabulary import Vocabulary
from tesseral.scripts import generate
from tesseral.scripts.main import main

SMILES = ("CC#N", "CCO", "c1ccoc1", "CC(=O)[O-]")


@pytest.fixture(scope="module")
def molecules():
    return [prepared(embedded(s), MoleculeOptions(hydrogens="remove")) for s in SMILES]


@pytest.fixture
def model(tmp_path, molecules):
    """An untrained generator of small heavy-atom molecules."""
    import torch

    torch.manual_seed(0)
    config = {"network": {"scalars": 16, "vectors": 4, "edges": 4, "layers": 2}, "diffusion": {"steps": 8}}
    generator = EqgatDiff.from_config(config, Vocabulary.from_structures(molecules))
    return str(
        save(generator, tmp_path / "g.safetensors", {"reference": Distributions.of(molecules).to_dict()})
    )


def test_sd_file_holds_every_molecule_with_its_verdict(model, tmp_path, capsys):
    out, numbers = tmp_path / "x.sdf", tmp_path / "m.json"
    assert main(["generate", model, "-n", "20", "-o", str(out), "--json", str(numbers), "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "20 generated" in shown
    records = list(Chem.SDMolSupplier(str(out), sanitize=False))
    assert len(records) == 20
    assert all(mol is not None for mol in records)
    report = json.loads(numbers.read_text())
    valid = [mol.GetProp("valid") in ("1", "True", "true") for mol in records]
    assert np.mean(valid) == pytest.approx(report["validity"])
    for mol, good in zip(records, valid, strict=True):
        assert bool(mol.HasProp("reason")) != good
    assert report["sampling"]["steps"] == 8
    assert report["wasserstein"]["bond"]["value"] > 0
    assert sum(report["failures"].values()) == 20 - sum(valid)
    drawn = load(model).sample(20, seed=3)
    for structure, again in zip(read(out), drawn, strict=True):
        np.testing.assert_allclose(structure.positions, again.positions, atol=1e-3)
        assert structure.numbers.tolist() == again.numbers.tolist()


def test_interrupted_work_is_taken_up(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "CHUNK", 4)
    calls, sample = [], EqgatDiff.sample

    def interrupted(self, n, **settings):
        calls.append(settings["first"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, n, **settings)

    monkeypatch.setattr(EqgatDiff, "sample", interrupted)
    command = ["generate", model, "-n", "10", "-o", str(tmp_path / "x.extxyz")]
    assert main(command) == 130
    assert not (tmp_path / "x.extxyz").exists()
    assert main(command) == 0
    assert calls == [0, 4, 8, 8]
    monkeypatch.setattr(EqgatDiff, "sample", sample)
    assert main([*command[:-1], str(tmp_path / "y.extxyz")]) == 0
    for a, b in zip(read(tmp_path / "x.extxyz"), read(tmp_path / "y.extxyz"), strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_fixed_core_is_in_every_molecule(model, tmp_path):
    core = embedded("CC#N")
    write(tmp_path / "core.sdf", core)
    out = tmp_path / "x.sdf"
    command = [
        "generate",
        model,
        "-n",
        "5",
        "-o",
        str(out),
        "--fix",
        str(tmp_path / "core.sdf"),
        "--add-atoms",
        "2-3",
    ]
    assert main(command) == 0
    for drawn in read(out):
        assert drawn.n_atoms in (5, 6)
        assert drawn.numbers[:3].tolist() == [6, 6, 7]
        found, known = (x[:3] - x[:3].mean(0) for x in (drawn.positions, core.positions))
        assert np.sqrt(((found - known) ** 2).sum(1).mean()) < 1e-3


def test_until_valid_writes_valid_molecules_only(model, tmp_path):
    out, numbers = tmp_path / "x.smi", tmp_path / "m.json"
    command = [
        "generate",
        model,
        "-n",
        "3",
        "-o",
        str(out),
        "--atoms",
        "1-2",
        "--until-valid",
        "--json",
        str(numbers),
    ]
    assert main([*command, "--grid", str(tmp_path / "grid.png")]) == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 3
    assert all(Chem.MolFromSmiles(line.split()[0]) is not None for line in lines)
    report = json.loads(numbers.read_text())
    assert report["n_generated"] >= 3
    assert (tmp_path / "grid.png").stat().st_size > 1000


@pytest.mark.parametrize("how", ["mmff", "tesseral-organic"])
def test_valid_molecules_are_relaxed_with_their_hydrogens(model, tmp_path, how):
    out, numbers = tmp_path / "x.sdf", tmp_path / "m.json"
    command = [
        "generate",
        model,
        "-n",
        "2",
        "-o",
        str(out),
        "--atoms",
        "2",
        "--until-valid",
        "--json",
        str(numbers),
    ]
    assert main([*command, "--relax", how]) == 0
    strain = json.loads(numbers.read_text())["strain"]
    assert strain["n_relaxed"] + strain["n_failed"] >= 2
    assert strain["n_relaxed"] > 0
    assert strain["energy_drop"]["median"] > 0
    relaxed = [s for s in read(out) if "energy_drop_kcal_mol" in s.info]
    assert relaxed
    assert any((s.numbers == 1).any() for s in relaxed)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["-n", "0"], "at least one"),
        (["-n", "1", "--atoms", "many"], "12-24"),
        (["-n", "1", "--steps", "9"], "1..8 steps"),
        (["-n", "1", "--fix", "core.sdf"], "belong together"),
        (["-n", "1", "--atoms", "5-2"], "range"),
    ],
)
def test_mistakes_are_told_in_one_line(model, tmp_path, capsys, options, text):
    assert main(["generate", model, "-o", str(tmp_path / "x.sdf"), *options]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_generator_is_trained_by_the_same_command(tmp_path, capsys):
    assert main(["train", "--template", "model.architecture=eqgat-diff"]) == 0
    assert "hydrogens: keep" in capsys.readouterr().out
    write(tmp_path / "set.sdf", [embedded(s) for s in SMILES * 3])
    config = tmp_path / "g.yaml"
    config.write_text(
        "model: {architecture: eqgat-diff, config: {preset: cpu, network: {layers: 1}, diffusion: {steps: 5}}}\n"
        f"data: {{train: {tmp_path / 'set.sdf'}, molecules: {{hydrogens: remove}}}}\n"
    )
    command = ["train", str(config), f"run={tmp_path / 'run'}", "training.epochs=1", "training.threads=1"]
    assert main(command) == 0
    assert load(tmp_path / "run" / "model.safetensors").vocabulary.implicit_hydrogens
    assert main([*command, "data.bach_size=3", "--force"]) == 2
    assert "batch_size" in capsys.readouterr().err
