"""The recipes of benchmarks/generative, on a handful of molecules."""

import importlib.util
import json
from pathlib import Path

import tesseral

RECIPES = Path(tesseral.__file__).parent / "benchmarks" / "generative"


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"tesseral_recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pretraining_and_fine_tuning_run_as_one_command(tmp_path, monkeypatch):
    many, few = tmp_path / "many.smi", tmp_path / "few.smi"
    many.write_text("\n".join(["CCO", "CC#N", "CCN", "CC=O", "COC", "NC=O"] * 3))
    few.write_text("\n".join(["CC#N", "CCO"] * 8))
    module = recipe("pretraining")
    network = {"scalars": 16, "layers": 2, "norm": "corrected"}
    tiny = {"config": {"preset": "cpu", "network": network, "diffusion": {"steps": 20}}}
    monkeypatch.setattr(module, "MODEL", tiny)
    monkeypatch.setitem(module.COMMON, "data", {**module.COMMON["data"], "val": 0.5, "batch_size": 4})
    command = [str(many), str(few), str(tmp_path / "out"), "--draw", "10", "--threads", "1", "--epochs", "30", "30"]
    module.main([*command, "--pretrain", "15"])
    found = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert (found["n_pretrain"], found["n_finetune"]) == (15, 16)
    assert found["finetuned"]["val_loss"] < found["fresh"]["val_loss"]
    assert found["finetuned"]["steps"] == found["fresh"]["steps"]
    card = tesseral.load(tmp_path / "out" / "finetuned" / "model.safetensors").card
    assert card["provenance"]["steps_before"] == found["pretrained"]["steps"]
    assert set(card["vocabulary"]["sizes"]) == {"3"}
    module.main(command)  # finished parts are kept
