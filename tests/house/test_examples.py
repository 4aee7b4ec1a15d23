"""What README and examples/ show is run here as it stands (with a short training)."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tesseral.scripts.main import main


@pytest.fixture
def in_root(repo_root, monkeypatch) -> Path:
    """Work in the repository root, as README says."""
    monkeypatch.chdir(repo_root)
    return repo_root


def blocks(root: Path, language: str) -> list[str]:
    """Code blocks of README in that language."""
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(), re.S)


def run_python(code: str) -> str:
    """Output of a script in a fresh interpreter."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_python_of_readme_runs(in_root):
    for code in blocks(in_root, "python"):
        assert "eV" in run_python(code)


@pytest.mark.parametrize("name", ["ase_five_lines.py", "crystal.py"])
def test_example_script_runs(in_root, name):
    output = run_python((in_root / "examples" / name).read_text())
    if name == "crystal.py":
        lattice, modulus = map(float, re.search(r"a = ([\d.]+) Å, B = (\d+)", output).groups())
        assert 3.55 < lattice < 3.72 and 90 < modulus < 200  # PBE: 3.63 Å, 138 GPa


def test_potential_of_contributing_works(repo_root, tmp_path, monkeypatch):
    """The page's new potential: forces are the gradient, a round trip through a file changes nothing."""
    import torch

    from tesseral import potentials
    from tesseral.datasets.graph import graph_from_structure
    from tesseral.datasets.read import read
    from tesseral.datasets.statistics import compute_statistics
    from tesseral.potentials.base import predict

    code = re.search(r"```python\n(.*?)```", (repo_root / "CONTRIBUTING.md").read_text(), re.S)[1]
    module = types.ModuleType("tesseral.potentials.pair")
    module.__package__ = "tesseral.potentials"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "pair.py", "exec"), module.__dict__)
    monkeypatch.setitem(potentials.ARCHITECTURES, "pair", "pair:Pair")

    frames = read(repo_root / "examples" / "data" / "3bpa_test.extxyz", index=":5")
    model = potentials.build("pair", {"cutoff": 4.0}, compute_statistics(frames, 4.0)).double()
    potentials.save(model, tmp_path / "pair.safetensors")
    again = potentials.load(tmp_path / "pair.safetensors")

    def energy(shift: float) -> float:
        moved = frames[0].copy()
        moved.positions[3, 1] += shift
        return float(predict(again, graph_from_structure(moved, 4.0, dtype=torch.float64)).energy)

    forces = predict(model, graph_from_structure(frames[0], 4.0, dtype=torch.float64)).forces
    assert forces is not None and forces.abs().max() > 1e-3
    assert (energy(1e-4) - energy(-1e-4)) / 2e-4 == pytest.approx(-float(forces[3, 1]), rel=1e-5)


def test_five_lines_of_training_run(in_root, tmp_path, capsys):
    """README's way from data to dynamics, on the example data and for two epochs."""
    lines = next(b for b in blocks(in_root, "bash") if "tesseral train" in b).splitlines()
    assert len(lines) == 5
    here = {
        "your.extxyz": "examples/data/3bpa_train.extxyz",
        "test.extxyz": "examples/data/3bpa_test.extxyz",
        "start.xyz": "examples/3bpa.xyz",
        "runs/mine": f"{tmp_path}/mine",
        "parity.png": f"{tmp_path}/parity.png",
        "relaxed.xyz": f"{tmp_path}/relaxed.xyz",
        "run.extxyz": f"{tmp_path}/run.extxyz",
    }
    short = {
        "train": "model.init=tesseral-organic training.epochs=2",
        "relax": "--steps 5 --fmax 50",
        "md": "--steps 10",
    }
    for line in lines:
        words = re.sub("|".join(map(re.escape, here)), lambda m: here[m[0]], line).split()[1:]
        extra = short.get(words[0], "").split()
        assert main([*words, *extra]) == 0, (line, capsys.readouterr().err)
    assert (tmp_path / "parity.png").stat().st_size > 5000
    assert (tmp_path / "relaxed.xyz").exists() and (tmp_path / "run.extxyz").exists()


@pytest.mark.parametrize("name", ["train_3bpa.yaml", "finetune_3bpa.yaml"])
def test_example_configuration_trains(in_root, tmp_path, name):
    words = ["train", f"examples/{name}", f"run={tmp_path}/run", "training.epochs=1", "data.val=0.9"]
    assert main(words) == 0
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_shipped_models_reproduce_their_cards_order_of_error(in_root, tmp_path):
    """On the shipped test frames the solids model has errors of the size that its card claims."""
    import json

    out = tmp_path / "errors.json"
    assert main(["evaluate", "tesseral-solids", "examples/data/solids_test.extxyz", "--json", str(out)]) == 0
    errors = json.loads(out.read_text())
    assert errors["forces"]["mae"] < 100 and errors["energy_per_atom"]["mae"] < 20
