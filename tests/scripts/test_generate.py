"""`tesseral generate` and the training of a generator from the command line, on a tiny model."""

import json

import numpy as np
import pytest
from rdkit import Chem

from tesseral import read
from tesseral.datasets.write import write
from tesseral.generative import load, save
from tesseral.generative.chemistry import core_rmsd, judge, located
from tesseral.generative.data import MoleculeOptions, embedded, prepared
from tesseral.generative.geometry import Distributions
from tesseral.generative.model import EqgatDiff
from tesseral.generative.reference import Reference
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
    return str(save(generator, tmp_path / "g.safetensors", {"reference": Distributions.of(molecules).to_dict()}))


def test_sd_file_holds_the_valid_molecules_and_another_the_rest_with_reasons(model, tmp_path, capsys):
    out, numbers = tmp_path / "x.sdf", tmp_path / "m.json"
    command = ["generate", model, "-n", "40", "-o", str(out), "--json", str(numbers), "--seed", "3"]
    assert main([*command, "--atoms", "2-4"]) == 0
    shown = capsys.readouterr().out
    assert "40 generated" in shown
    report = json.loads(numbers.read_text())
    good = list(Chem.SDMolSupplier(str(out)))
    bad = list(Chem.SDMolSupplier(str(tmp_path / "x.failed.sdf"), sanitize=False))
    assert all(mol is not None for mol in (*good, *bad))
    assert good and bad and len(good) + len(bad) == report["n_generated"] == 40
    assert report["validity"] == len(good) / 40
    assert report["files"] == {"valid": len(good), "failed": len(bad)}
    assert sum(report["failures"].values()) == len(bad)
    for mol in good:
        assert mol.GetProp("smiles") == Chem.MolToSmiles(mol)  # hydrogens, charges and stereo survive the file
        assert not mol.HasProp("reason")
        assert "." not in mol.GetProp("smiles")
    assert all(mol.GetProp("reason") for mol in bad)
    assert report["sampling"]["steps"] == 8
    assert report["wasserstein"]["bond"]["value"] > 0
    drawn = {f"generated-3-{k}": s for k, s in enumerate(load(model).sample(40, seed=3, atoms=(2, 4)))}
    for structure in (*read(out), *read(tmp_path / "x.failed.sdf")):
        again = drawn.pop(structure.info["name"])
        lost = structure.info.get("reason", "").startswith("coordinates")
        assert lost == (not located(again))
        np.testing.assert_allclose(structure.positions, 0 if lost else again.positions, atol=1e-3)
        assert structure.numbers.tolist() == again.numbers.tolist()
        np.testing.assert_array_equal(structure.bonds, again.bonds)
    assert not drawn


def test_real_molecules_come_back_from_the_file_as_they_were(tmp_path):
    """Charges, bonds, implicit hydrogens and stereo of what a perfect generator would draw."""
    from tesseral.generative.molecules import collate, decode, encode
    from tesseral.scripts._molecules import Batch, write_molecules

    texts = ("C[C@H](N)C(=O)[O-]", "F/C=C/Cl", "C[N+](C)(C)C", "c1cc[nH]c1", "CS(=O)(=O)C", "C[S@](=O)CC", "O")
    for hydrogens in ("add", "remove"):
        real = [prepared(embedded(s), MoleculeOptions(hydrogens=hydrogens)) for s in texts]
        vocabulary = Vocabulary.from_structures(real)
        drawn = decode(collate([encode(s, vocabulary) for s in real]), vocabulary)
        verdicts = [judge(s, implicit_hydrogens=vocabulary.implicit_hydrogens) for s in drawn]
        batch = Batch(drawn, verdicts, vocabulary.implicit_hydrogens)
        out = tmp_path / f"{hydrogens}.sdf"
        assert write_molecules(batch, out, seed=0, most=None, largest=False) == (len(texts), 0)
        found = [Chem.MolToSmiles(mol) for mol in Chem.SDMolSupplier(str(out))]
        assert found == [Chem.CanonSmiles(s) for s in texts]
        assert found == [v.isomeric_smiles for v in verdicts]


def test_valences_are_bounded_by_the_training_data_unless_freed(model, molecules, tmp_path):
    """A network that likes single bonds everywhere, with and without a table of valences; the report says which."""
    generator = load(model)
    generator.network.bonds_out.bias.data[1] += 8.0
    known = save(generator, tmp_path / "known.safetensors", Reference.of(molecules).to_header())
    unknown = save(generator, tmp_path / "unknown.safetensors")

    def drawn(checkpoint, *options):
        out, numbers = tmp_path / "x.sdf", tmp_path / "m.json"
        command = ["generate", str(checkpoint), "-n", "40", "-o", str(out), "--json", str(numbers), "--atoms", "5"]
        assert main([*command, "--force", *options]) == 0
        report = json.loads(numbers.read_text())
        return report["sampling"]["valences"], report["failures"].get("valence too large", 0)

    bounded, free = drawn(known), drawn(known, "--free-valences")
    assert (bounded[0], free[0]) == ("within the training data", "free")
    assert bounded[1] <= free[1] - 5
    assert drawn(unknown) == free  # the same draws without a table


def test_interrupted_work_is_taken_up(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "CHUNK", 4)
    calls, sample = [], EqgatDiff.sample

    def interrupted(self, n, **settings):
        calls.append(settings["first"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, n, **settings)

    monkeypatch.setattr(EqgatDiff, "sample", interrupted)
    command = ["generate", model, "-n", "10", "--atoms", "1-3", "-o", str(tmp_path / "x.extxyz")]
    assert main(command) == 130
    assert "the same command continues it" in capsys.readouterr().err
    assert not (tmp_path / "x.extxyz").exists()
    assert main(command) == 0
    assert calls == [0, 4, 8, 8]
    monkeypatch.setattr(EqgatDiff, "sample", sample)
    assert main([*command[:-1], str(tmp_path / "y.extxyz")]) == 0
    for name in (".extxyz", ".failed.sdf"):
        for a, b in zip(read(tmp_path / f"x{name}"), read(tmp_path / f"y{name}"), strict=True):
            np.testing.assert_allclose(a.positions, b.positions, atol=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_fixed_core_is_in_every_molecule(model, tmp_path):
    core = embedded("CC#N")
    write(tmp_path / "core.sdf", core)
    out, numbers = tmp_path / "x.sdf", tmp_path / "m.json"
    options = ["--fix", str(tmp_path / "core.sdf"), "--add-atoms", "2-3", "--json", str(numbers)]
    assert main(["generate", model, "-n", "10", "-o", str(out), *options]) == 0
    files = [path for path in (out, tmp_path / "x.failed.sdf") if path.exists()]
    drawn = [structure for path in files for structure in read(path)]
    assert len(drawn) == 10
    for structure in drawn:
        assert structure.n_atoms in (5, 6)
        assert structure.numbers[:3].tolist() == [6, 6, 7]
        found, known = (x[:3] - x[:3].mean(0) for x in (structure.positions, core.positions))
        assert np.sqrt(((found - known) ** 2).sum(1).mean()) < 1e-3
    report = json.loads(numbers.read_text())["core"]
    assert report["n_found"] == report["n_unchanged"] == 10
    assert report["largest_rmsd"] < 1e-5


def test_a_changed_core_is_noticed():
    core, other = embedded("CC#N"), embedded("CC#CC")
    assert core_rmsd(core, core) == pytest.approx(0, abs=1e-6)
    assert core_rmsd(other, core) is None
    moved = core.copy()
    moved.positions[0] += 0.1
    assert 1e-2 < core_rmsd(moved, core) < 0.1
    charged = core.copy()
    charged.arrays["formal_charges"] = np.array([0, 0, 1, 0, 0, 0])
    assert core_rmsd(charged, core) is None


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
    strain = json.loads(numbers.read_text())["relaxation"]
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
        (["-n", "1", "-o", "x.mol17"], "suffix"),
        (["-n", "1", "--strain", "no-such-potential"], "no-such-potential"),
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


def test_a_set_with_an_unusual_element_is_learned_and_drawn_as_the_example_says(repo_root, tmp_path, monkeypatch):
    """examples/silanes.py and its configuration, on few molecules and for two epochs."""
    import runpy

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["silanes.py", "silanes.sdf", "60"])
    runpy.run_path(str(repo_root / "examples" / "silanes.py"), run_name="__main__")
    assert len(list(Chem.SDMolSupplier("silanes.sdf"))) == 60
    options = ["training.epochs=2", "model.config.network.layers=2", "training.threads=1"]
    assert main(["train", str(repo_root / "examples" / "train_silanes.yaml"), *options]) == 0
    vocabulary = load("runs/silanes/best.safetensors").vocabulary
    assert 14 in vocabulary.atoms["element"].values and vocabulary.implicit_hydrogens
    command = ["generate", "runs/silanes/best.safetensors", "-n", "40", "-o", "new.sdf", "--json", "m.json"]
    assert main([*command, "--reference", "silanes.sdf", "--atoms", "2-4", "--steps", "10"]) == 0
    report = json.loads((tmp_path / "m.json").read_text())
    assert {"learned", "corrected"} <= set(report["stability"])
    assert report["wasserstein"]["bond"]["value"] < 5
    drawn = [s for name in ("new.sdf", "new.failed.sdf") if (tmp_path / name).exists() for s in read(name)]
    assert len(drawn) == 40
    assert any((s.numbers == 14).any() for s in drawn)
