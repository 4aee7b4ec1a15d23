"""A training as a whole: files, EMA, stopping, divergence, fine-tuning, the step with torch alone."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from tesseral.potentials import load
from tesseral.potentials.evaluate import evaluate
from tesseral.potentials.fit import estimate_references, train
from tesseral.training.checkpoint import read_checkpoint, read_header
from tesseral.training.config import ConfigError
from tesseral.training.loop import TrainingDivergedError


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_what_it_should(toy_config, tmp_path, capsys):
    config = toy_config("run", "training.tensorboard=true", "training.epochs=2")
    result = train(config)
    folder = tmp_path / "run"
    names = {"config.yaml", "statistics.json", "metrics.csv", "tb", "last.state.safetensors"}
    assert names | {"best.safetensors", "model.safetensors"} == set(os.listdir(folder))
    rows = rows_of(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["4", "8"]
    assert float(rows[-1]["val_loss"]) == pytest.approx(result["metrics"]["val_loss"], rel=1e-7)
    assert {"train_forces_mae", "val_energy_rmse", "val_stress_mae", "lr", "time_s"} <= rows[0].keys()
    assert os.listdir(folder / "tb")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  val MAE E ")
    assert "meV/Å" in lines[0]
    header = read_header(folder / "best.safetensors")
    assert header["provenance"]["statistics"]["n_frames"] == 16
    assert header["metrics"]["val_loss"] > 0
    assert str(tmp_path) not in json.dumps(header)


def test_exported_weights_are_the_averaged_ones(toy_config, tmp_path):
    train(toy_config("run", ema=0.9))
    _, exported = read_checkpoint(tmp_path / "run" / "model.safetensors")
    _, state = read_checkpoint(tmp_path / "run" / "last.state.safetensors", expect="tesseral-state")
    model = load(tmp_path / "run" / "model.safetensors")
    different = 0
    for k, (name, _) in enumerate(model.named_parameters()):
        assert torch.equal(exported[name], state[f"/trainee/average/shadow/{k}"])
        different += not torch.equal(exported[name], state[f"/state_dict/task.model.{name}"])
    assert different > 0


def test_validation_numbers_are_those_of_the_exported_model(toy_config, toy_store, tmp_path):
    from tesseral.training.data import open_data

    config = toy_config("run")
    train(config)
    path = tmp_path / "run" / "best.safetensors"
    validation = open_data(config.data, seed=config.training.seed).validation
    report = evaluate(load(path), validation).report()
    metrics = read_header(path)["metrics"]
    assert report["forces"]["rmse"] == pytest.approx(metrics["val_forces_rmse"], rel=1e-9)
    assert report["energy_per_atom"]["mae"] == pytest.approx(metrics["val_energy_mae"], rel=1e-9)
    assert report["stress"]["mae"] == pytest.approx(metrics["val_stress_mae"], rel=1e-9)


def test_training_learns(toy_config, tmp_path):
    train(toy_config("run", "optimizer.lr=0.03", epochs=40, ema=0.9))
    rows = rows_of(tmp_path / "run")
    assert float(rows[-1]["val_forces_rmse"]) < 0.5 * float(rows[0]["val_forces_rmse"])


def test_test_data_are_evaluated_with_the_best_weights(toy_config, toy_store, tmp_path):
    result = train(toy_config("run", f"data.test={toy_store}", epochs=1))
    assert result["test"]["n_frames"] == 24
    path = tmp_path / "run" / "best.safetensors"
    assert read_header(path)["metrics"]["test"] == result["test"]
    assert result["test"]["forces"] == evaluate(load(path), load_source(toy_store)).report()["forces"]


def load_source(path):
    from tesseral.datasets.read import open_source

    return open_source(path)


def test_torch_and_the_generators_are_as_before(toy_config):
    torch.manual_seed(11)
    expected = (torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision())
    state = torch.get_rng_state()
    train(toy_config("run", "training.precision=tf32", epochs=1))
    assert (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
    ) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_same_seed_same_weights_and_another_seed_others(toy_config, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(toy_config(name, seed=seed, epochs=1))
        torch.rand(5)
    weights = [read_checkpoint(tmp_path / name / "model.safetensors")[1]["embedding"] for name in "abc"]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_old_run_is_not_overwritten_without_force(toy_config, tmp_path):
    config = toy_config("run", epochs=1)
    train(config)
    before = (tmp_path / "run" / "best.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="continue it with --resume"):
        train(config)
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == before
    train(toy_config("run", epochs=1, seed=9), force=True)
    assert (tmp_path / "run" / "best.safetensors").read_bytes() != before


def test_divergence_is_said_and_keeps_the_last_good_state(toy_config, tmp_path):
    config = toy_config("run", "optimizer.lr=1e150", "optimizer.clip=null", "schedule.warmup=0", epochs=2)
    with pytest.raises(TrainingDivergedError, match=r"diverged in epoch \d.*optimizer\.lr"):
        train(config)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_early_stop_ends_and_exports(toy_config, tmp_path):
    train(toy_config("run", "optimizer.lr=1e-30", epochs=50, stop_patience=2, ema=0.0))
    rows = rows_of(tmp_path / "run")
    assert 3 <= len(rows) < 10
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_max_time_ends_cleanly_and_can_be_continued(toy_config, tmp_path):
    train(toy_config("run", epochs=100000, max_time=0.02))
    rows = rows_of(tmp_path / "run")
    assert float(rows[-1]["time_s"]) < 10
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert float(rows[-1]["lr"]) < 0.05 * max(float(row["lr"]) for row in rows)  # the schedule ran by time
    steps = int(rows[-1]["step"])
    train(toy_config("run", epochs=int(rows[-1]["epoch"]) + 2), resume=True)
    assert int(rows_of(tmp_path / "run")[-1]["step"]) > steps


def test_validation_can_be_absent(toy_config, tmp_path):
    train(toy_config("run", "data.val=0", epochs=1))
    assert "val_loss" not in rows_of(tmp_path / "run")[0]
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_reduced_precision_trains_close_to_float64(toy_config, tmp_path, precision):
    values = {}
    for name in ("float64", precision):
        train(toy_config(name, f"training.precision={name}", epochs=2))
        values[name] = float(rows_of(tmp_path / name)[-1]["val_loss"])
    assert values[precision] == pytest.approx(values["float64"], rel=0.2 if precision == "bf16" else 1e-3)


def test_only_energies(toy_config, tmp_path):
    train(toy_config("run", "loss.forces.weight=0", "loss.stress.weight=0", epochs=2))
    row = rows_of(tmp_path / "run")[-1]
    assert "val_forces_mae" not in row
    assert float(row["val_energy_mae"]) > 0


def test_weights_by_config_type_change_the_course(toy_config, tmp_path):
    train(toy_config("a", epochs=1))
    train(toy_config("b", "data.weights={crystal: 0}", epochs=1))
    tensors = [read_checkpoint(tmp_path / name / "model.safetensors")[1]["embedding"] for name in "ab"]
    assert not torch.equal(*tensors)


def test_fine_tuning_shifts_references_and_keeps_frozen_weights(toy, toy_config, tmp_path):
    from tesseral.datasets.store_writer import write_store

    train(toy_config("first", epochs=1))
    start = tmp_path / "first" / "model.safetensors"
    shifted = toy.frames(12)
    for frame in shifted:
        frame.labels["energy"] = frame.labels["energy"] + (frame.numbers == 1).sum() * 2.0 + (frame.numbers == 8).sum()
    write_store(tmp_path / "shifted.h5", shifted)
    overrides = [
        f"model.init={start}",
        f"data.train={tmp_path / 'shifted.h5'}",
        "model.freeze=['layers.0.*']",
    ]
    train(toy_config("second", *overrides, epochs=1))
    before, after = read_checkpoint(start), read_checkpoint(tmp_path / "second" / "model.safetensors")
    old, new = before[0]["reference_energies"], after[0]["reference_energies"]
    assert new["1"] - old["1"] == pytest.approx(2.0, abs=0.7)  # the start model is not perfect on the rest
    assert new["8"] - old["8"] == pytest.approx(1.0, abs=0.7)
    for name in before[1]:
        kept = torch.equal(before[1][name], after[1][name])
        assert kept == (name.startswith("layers.0.") or name in ("scale", "message_norm", "frequencies")), name


def test_reference_estimate_is_exact_for_a_pure_shift(toy):
    model, frames = toy.teacher(), toy.frames(8)
    for frame in frames:
        frame.labels["energy"] = frame.labels["energy"] + (frame.numbers == 1).sum() * 2.0 - (frame.numbers == 8).sum()
    found = estimate_references(model, frames, {})
    assert found == pytest.approx({1: -11.6, 8: -431.0}, abs=1e-8)
    fixed = estimate_references(model, frames, {1: -13.6})
    assert fixed[1] == -13.6


def test_fine_tuning_with_a_new_element_is_refused(toy, toy_config, tmp_path):
    from tesseral.datasets.store_writer import write_store

    train(toy_config("first", epochs=1))
    frames = toy.frames(6)
    frames[0].numbers[0] = 17
    write_store(tmp_path / "chlorine.h5", frames)
    overrides = [
        f"model.init={tmp_path / 'first' / 'model.safetensors'}",
        f"data.train={tmp_path / 'chlorine.h5'}",
    ]
    with pytest.raises(ConfigError, match=r"model\.init knows H O, the training data also have Cl"):
        train(toy_config("second", *overrides))


def test_unknown_settings_of_the_model(toy_config):
    with pytest.raises(ValueError, match="colour"):
        train(toy_config("run", "model.config.colour=3"))


BARE = """
import sys, torch
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning", "tensorboard", "ase", "matplotlib", "scipy", "yaml", "tqdm"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from tesseral.datasets.loader import GraphLoader
from tesseral.datasets.store import Store
from tesseral.datasets.statistics import compute_statistics
from tesseral.potentials import build
from tesseral.potentials.loss import LossOptions
from tesseral.potentials.task import PotentialTask
from tesseral.training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from tesseral.training.task import Trainee
source = Store(sys.argv[1])
model = build("tesseral", {"cutoff": 3.0, "lmax": 1, "channels": [2, 2], "field_channels": 2, "scalars": 4},
              compute_statistics(source, 3.0))
loader = GraphLoader(source, 3.0, labels=("energy", "forces"), batch_size=8)
trainee = Trainee(PotentialTask(model, LossOptions()), TrainingOptions(epochs=5), OptimizerOptions(), ScheduleOptions())
losses = [float(trainee.step(batch, len(loader))) for _ in range(5) for batch in loader]
print(losses[-1] < losses[0])
"""


def test_the_step_runs_without_lightning(toy_store):
    run = subprocess.run([sys.executable, "-c", BARE, str(toy_store)], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "True", run.stderr
