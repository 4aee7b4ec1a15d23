"""`tesseral bench generative` on a tiny model: what the record holds, intervals, differences, mistakes."""

import json

import numpy as np
import pytest
import torch

from tesseral.generative import save
from tesseral.generative.data import MoleculeOptions, embedded, prepared
from tesseral.generative.model import EqgatDiff
from tesseral.generative.reference import Reference
from tesseral.generative.vocabulary import Vocabulary
from tesseral.scripts.bench.generative import PUBLISHED, differences, flattened, interval
from tesseral.scripts.main import main

SMILES = ("CC#N", "CCO", "c1ccoc1", "CC(=O)[O-]")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained generator of heavy-atom molecules with one or two atoms."""
    molecules = [prepared(embedded(s), MoleculeOptions(hydrogens="remove")) for s in SMILES]
    vocabulary = Vocabulary.from_structures(molecules)
    vocabulary.sizes.clear()
    vocabulary.sizes.update({1: 1, 2: 3})
    torch.manual_seed(0)
    network = {"scalars": 16, "vectors": 4, "edges": 4, "layers": 2, "norm": "corrected"}
    generator = EqgatDiff.from_config({"network": network, "diffusion": {"steps": 8}}, vocabulary)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return str(save(generator, path, Reference.of(molecules).to_header()))


def test_record_table_and_figure(model, tmp_path, capsys):
    (tmp_path / "train.smi").write_text("\n".join(SMILES))
    out = tmp_path / "record.json"
    (tmp_path / "kept.smi").write_text("CC\nCO\nCC#N\n")
    command = ["bench", "generative", model, "-n", "20", "--seeds", "2", "--steps", "2,4", "--strain", "mmff"]
    command += ["--kept", str(tmp_path / "kept.smi")]
    assert main([*command, "--reference", str(tmp_path / "train.smi"), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "EQGAT-diff (published)" in shown and "2 seeds of 20 molecules" in shown
    assert out.with_suffix(".png").stat().st_size > 5000
    record = json.loads(out.read_text())
    assert record["published"] == PUBLISHED and "bench generative" in record["command"]
    assert record["settings"]["seeds"] == [0, 1] and record["device"]
    tiny = record["models"]["tiny"]
    assert list(tiny["runs"]) == ["2", "4"] and tiny["noise_levels"] == 8
    for run in tiny["runs"].values():
        for seed, report in enumerate(run["seeds"]):
            assert report["n_generated"] == 20 and report["sampling"]["seed"] == seed
            assert set(report["memory"]) == {"trained", "kept", "ratio"}
            assert run["numbers"]["validity"]["values"][seed] == report["validity"]
        assert run["numbers"]["sampling.molecules_per_second"]["mean"] > 0
        assert {"stability.learned.molecule", "wasserstein.bond.value", "likeness.kl.value"} <= set(run["numbers"])
        assert run["seeds"][0] != run["seeds"][1]
    most, fewer = (tiny["runs"][k]["numbers"]["validity"]["mean"] for k in ("4", "2"))
    assert tiny["differences"]["2"]["validity"]["mean"] == pytest.approx(fewer - most)
    assert main([*command, "-o", str(out)]) == 2  # exists


def test_default_steps_are_those_that_the_model_has(model, capsys):
    assert main(["bench", "generative", model, "-n", "2", "--seeds", "1"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:3]] == ["8", "(published)"]


def test_intervals_by_hand():
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["half_width"] == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)  # Student's t, two degrees
    assert interval([0.5])["half_width"] is None
    report = {"a": 1, "b": {"c": 0.5, "unit": "Å"}, "failures": {"x": 3}, "d": None, "e": True, "seed": 4}
    assert flattened(report) == {"a": 1.0, "b.c": 0.5}
    runs = {
        "5": {"numbers": {"validity": interval([0.5, 0.6])}},
        "10": {"numbers": {"validity": interval([0.7, 0.8])}},
    }
    (difference,) = differences(runs)["5"].values()
    assert difference["mean"] == pytest.approx(-0.2)
    assert difference["half_width"] == pytest.approx(0, abs=1e-9)  # seed by seed, they are equal


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--steps", "many"], "25,50,100"),
        (["--steps", "9"], "1..8 steps"),
        (["-n", "0"], "at least one"),
        (["--fcd", "-n", "2", "--seeds", "1"], "--reference"),
        (["--kept", "kept.smi"], "--reference"),
    ],
)
def test_mistakes_are_told_in_one_line(model, capsys, options, text):
    assert main(["bench", "generative", model, *options]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
