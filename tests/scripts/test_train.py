"""`tesseral train` on files: from a configuration to a model, and what it says to mistakes."""

import importlib.util
import json
from pathlib import Path

import pytest

from tesseral.scripts.main import main

TOY = Path(__file__).parents[1] / "training" / "toy.py"


@pytest.fixture(scope="module")
def toy():
    spec = importlib.util.spec_from_file_location("tesseral_test_toy", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(toy, tmp_path_factory):
    return toy.write(tmp_path_factory.mktemp("data") / "toy.h5")


@pytest.fixture
def config(toy, data, tmp_path):
    """A configuration of one epoch on toy data."""
    path = tmp_path / "config.yaml"
    path.write_text(toy.config_text(data, tmp_path / "run", epochs=1))
    return path


def test_train_writes_a_model_and_its_numbers(config, data, tmp_path, capsys):
    code = main(["train", str(config), "training.epochs=2", f"data.test={data}", "--json",
                 str(tmp_path / "out.json")])  # fmt: skip
    assert code == 0
    output = capsys.readouterr().out
    assert "epoch 2/2  val MAE E " in output
    assert "test data" in output
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["metrics"]["epoch"] == 2
    assert record["test"]["forces"]["unit"] == "meV/Å"
    assert "train" in record["command"]
    from tesseral.potentials import load

    assert load(tmp_path / "run" / "best.safetensors").elements == (1, 8)


def test_seed_and_device_options_are_overrides(config, tmp_path):
    assert main(["train", str(config), "--seed", "5", "--device", "cpu"]) == 0
    assert "seed: 5" in (tmp_path / "run" / "config.yaml").read_text()


def test_overrides_alone_are_enough(toy, data, tmp_path):
    model = json.dumps(toy.MODEL).replace('"', "")
    words = [
        f"run={tmp_path / 'r'}",
        f"data.train={data}",
        "training.epochs=1",
        f"model.config={model}",
        "data.val=0.5",
    ]
    assert main(["train", *words]) == 0
    assert (tmp_path / "r" / "model.safetensors").exists()


def test_resume_of_a_finished_run_says_so(config, capsys):
    assert main(["train", str(config)]) == 0
    assert main(["train", str(config), "--resume"]) == 0
    assert "finished; raise training.epochs" in capsys.readouterr().out


def test_template_is_a_configuration(tmp_path, capsys):
    from tesseral.potentials.fit import PotentialTraining
    from tesseral.training.config import load_config

    assert main(["train", "--template"]) == 0
    path = tmp_path / "t.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(PotentialTraining, path) == PotentialTraining()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no configuration: give CONFIG.yaml"),
        (["absent.yaml"], "cannot read the configuration absent.yaml: No such file"),
        (["{config}", "optimiser.lr=1"], "unknown key 'optimiser'; did you mean 'optimizer'?"),
        (["{config}", "data.train=absent.xyz"], "absent.xyz"),
        (["{config}", "data.train=[]"], "data.train is missing"),
        (["{config}", "model.architecture=face"], "face"),
        (["{config}", "model.init=no-such-model"], "no-such-model"),
        (["{config}", "model.freeze=[nothing]"], "'nothing' matches no parameter"),
        (["{config}", "training.device=cuda:99"], "cuda:99"),
        (["{config}", "training.device=gpu"], "gpu"),
        (["{config}", "--resume"], "has no training to resume"),
    ],
)
def test_mistakes_end_with_one_line_and_code_two(config, capsys, words, message):
    assert main(["train", *(w.format(config=config) for w in words)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("tesseral: error: ")
    assert message in errors[0]


def test_finished_runs_are_kept_without_force(config, capsys):
    assert main(["train", str(config)]) == 0
    assert main(["train", str(config)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", str(config), "--force"]) == 0


def test_train_on_a_real_extxyz_file(shared_data, tmp_path):
    data = shared_data("3bpa/train_300K.extxyz.gz")
    atoms = shared_data("3bpa/isolated_atoms.extxyz.gz")
    words = [
        "model.config={cutoff: 3.0, lmax: 1, channels: [2, 2], field_channels: 2, scalars: 4}",
        "data.val=0.97",
    ]
    words += [
        f"data.train={data}",
        f"data.reference_energies={atoms}",
        f"run={tmp_path / 'r'}",
        "training.epochs=1",
    ]
    assert main(["train", *words]) == 0
    from tesseral.training.checkpoint import read_header

    header = read_header(tmp_path / "r" / "model.safetensors")
    assert header["elements"] == [1, 6, 7, 8]
    assert header["reference_energies"]["1"] == pytest.approx(-13.6, abs=0.5)
