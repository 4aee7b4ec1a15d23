"""Data sets with a part kept aside: complete, deterministic, the same molecules whatever the limit; the recipes."""

import json
import subprocess
import sys

import pytest

from tesseral.datasets.store import Store
from tesseral.generative.data import MoleculeOptions, embedded, prepared
from tesseral.generative.fit import GeneratorTraining
from tesseral.generative.sets import KEPT, write_sets
from tesseral.training.config import load_config

SMILES = ("CCO", "CC#N", "c1ccoc1", "CC(=O)[O-]", "C[C@H](N)C#N", "CCS")


@pytest.fixture(scope="module")
def structures():
    return [prepared(embedded(s), MoleculeOptions(hydrogens="remove")) for s in SMILES]


def test_every_molecule_is_in_one_part(structures, tmp_path):
    many = [(k, {"noh": structures[k % 6]}) for k in range(300)]
    many.insert(5, (300, "no geometry found"))
    card = write_sets(many, tmp_path / "all", ("noh",), {"source": "test"})
    assert card == json.loads((tmp_path / "all" / "card.json").read_text())
    assert card["counts"]["train"] + card["counts"]["kept"] == 300
    assert 0.4 * KEPT < card["counts"]["kept"] / 300 < 2.5 * KEPT
    assert card["counts"]["with formal charges"] == 50
    assert card["left_out"] == {"no geometry found": 1}
    assert len(Store(tmp_path / "all" / "noh.h5")) == card["counts"]["train"]
    assert len(Store(tmp_path / "all" / "noh-kept.h5")) == card["counts"]["kept"]
    assert len((tmp_path / "all" / "train.smi").read_text().split()) == 6
    kept = [s.info for s in Store(tmp_path / "all" / "noh-kept.h5")]
    few = write_sets(many[150:], tmp_path / "few", ("noh",), {"source": "test"})
    assert len(kept) > few["counts"]["kept"] > 0
    again = write_sets(many, tmp_path / "again", ("noh",), {"source": "test"})
    assert again == card


def test_drug_like_set_from_smiles(repo_root, tmp_path):
    (tmp_path / "a.csv").write_text("smiles,logP\n" + "".join(f"{s},0\n" for s in (*SMILES, "CCO", "C(")))
    outs = [tmp_path / "first", tmp_path / "second"]
    for out in outs:
        script = repo_root / "benchmarks" / "generative" / "zinc.py"
        subprocess.run([sys.executable, script, tmp_path / "a.csv", out], check=True, capture_output=True)
    card = json.loads((outs[0] / "card.json").read_text())
    assert card["counts"]["kept"] == 0
    assert card["counts"]["train"] + card["counts"]["kept"] == 6
    assert sum(card["left_out"].values()) == 1
    first, second = (Store(out / "zinc.h5") for out in outs)
    assert all((a.positions == b.positions).all() for a, b in zip(first, second, strict=True))
    assert all((s.numbers == 1).any() for s in first)
    assert not any((s.numbers == 1).any() for s in Store(outs[0] / "zinc-noh.h5"))


def test_recipes_are_valid_configurations(repo_root):
    found = sorted((repo_root / "benchmarks" / "generative").glob("eqgat-*.yaml"))
    recipes = [path for path in found if not path.name.endswith(".card.yaml")]
    assert len(recipes) >= 4
    for path in recipes:
        assert load_config(GeneratorTraining, path).model.architecture == "eqgat-diff"
