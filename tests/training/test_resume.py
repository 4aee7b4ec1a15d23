"""Resume is exact: kill -9, Ctrl-C and SIGTERM in the middle of an epoch change nothing of the result."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tesseral.potentials.fit import PotentialTraining, train
from tesseral.potentials.task import PotentialTask
from tesseral.training.checkpoint import read_checkpoint, read_header
from tesseral.training.config import ConfigError, load_config
from tesseral.training.task import Trainee

STATE = "last.state.safetensors"
EPOCHS = 12  # of 4 steps; states after steps 3, 6, 9 …


@pytest.fixture(scope="module")
def whole(toy, toy_store, tmp_path_factory):
    """Folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "config.yaml"
    path.write_text(toy.config_text(toy_store, folder / "run", epochs=EPOCHS, ema=0.9))
    train(load_config(PotentialTraining, path))
    return folder / "run"


def start_and_signal(config_path, run, number, states):
    """Train in a child process, send it a signal after so many written states; its exit code and output."""
    command = [sys.executable, "-m", "tesseral", "train", str(config_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen, last = 0, None
    while child.poll() is None and seen < states:
        try:
            now = (run / STATE).stat().st_mtime_ns
        except FileNotFoundError:
            now = None
        if now != last:
            seen, last = seen + 1, now
        time.sleep(0.001)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    return child.returncode, errors


def assert_equal_results(one, two):
    for name, kind in (
        ("model.safetensors", "tesseral"),
        ("best.safetensors", "tesseral"),
        (STATE, "tesseral-state"),
    ):
        a, b = (read_checkpoint(folder / name, expect=kind)[1] for folder in (one, two))
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == [], name
    rows = []
    for folder in (one, two):
        with open(folder / "metrics.csv", newline="") as file:
            rows.append([{k: v for k, v in row.items() if k != "time_s"} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]


class StopError(Exception):
    """Stands for the end of the process."""


def train_until(step, config, monkeypatch):
    """Train, and die before the step of this number."""
    original = Trainee.step

    def fails_later(self, batch, n_batches):
        if self.progress.step == step:
            raise StopError
        return original(self, batch, n_batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", fails_later)
        with pytest.raises(StopError):
            train(config)


@pytest.fixture
def whole_and_cut(toy, toy_store, tmp_path):
    """Configurations of two equal short trainings that save after every step: `whole_and_cut(overrides)`."""

    def make(*overrides):
        configs = []
        for name in ("whole", "cut"):
            path = tmp_path / f"{name}.yaml"
            path.write_text(toy.config_text(toy_store, tmp_path / name, epochs=2, save_every=1))
            configs.append(load_config(PotentialTraining, path, overrides))
        return configs

    return make


@pytest.fixture
def config_path(toy, toy_store, tmp_path):
    """The configuration of the training `whole`, in a folder of its own."""
    path = tmp_path / "config.yaml"
    path.write_text(toy.config_text(toy_store, tmp_path / "run", epochs=EPOCHS, ema=0.9))
    return path


def progress_of(run):
    return read_header(run / STATE, expect="tesseral-state")["state"]["trainee"]["progress"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)]
)
def test_interrupted_training_ends_with_the_same_weights(config_path, whole, number, code):
    run = config_path.parent / "run"
    returned, errors = start_and_signal(config_path, run, number, states=4)
    assert returned == code, errors
    assert "Traceback" not in errors
    assert 0 < progress_of(run)["step"] < 4 * EPOCHS
    train(load_config(PotentialTraining, config_path), resume=True)
    assert_equal_results(whole, run)


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7, 8, 10])
def test_end_at_any_step_of_an_epoch(config_path, whole, monkeypatch, step):
    run = config_path.parent / "run"
    config = load_config(PotentialTraining, config_path, ["training.save_every=1"])
    train_until(step, config, monkeypatch)
    progress = progress_of(run)
    assert (progress["step"], 4 * progress["epoch"] + progress["batch"]) == (step, step)
    train(config, resume=True)
    assert_equal_results(whole, run)


def test_random_draws_of_a_task_continue_too(whole_and_cut, monkeypatch):
    plain = PotentialTask.losses

    def noisy(self, batch, *, training):
        batch.positions = batch.positions + 0.01 * torch.randn_like(batch.positions) * training
        return plain(self, batch, training=training)

    monkeypatch.setattr(PotentialTask, "losses", noisy)
    whole, cut = whole_and_cut()
    train(whole)
    train_until(6, cut, monkeypatch)
    train(cut, resume=True)
    assert_equal_results(Path(whole.run), Path(cut.run))


@pytest.mark.parametrize("override", ["optimizer.name=prodigy", "schedule.name=plateau", "training.ema=0"])
def test_other_optimisers_and_schedules_resume_exactly(whole_and_cut, monkeypatch, override):
    whole, cut = whole_and_cut(override)
    train(whole)
    train_until(5, cut, monkeypatch)
    train(cut, resume=True)
    assert_equal_results(Path(whole.run), Path(cut.run))


def test_no_pickle_is_written(whole):
    for path in whole.rglob("*"):
        if path.is_file():
            assert path.suffix not in (".ckpt", ".pt", ".pth", ".pkl")
            assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), path


def test_resume_refuses_what_is_not_the_same_training(toy_config, tmp_path):
    with pytest.raises(ConfigError, match="has no training to resume"):
        train(toy_config("run"), resume=True)
    train(toy_config("run", epochs=1))
    with pytest.raises(ConfigError, match=r"differs in optimizer\.lr, training\.seed"):
        train(toy_config("run", "optimizer.lr=0.1", "training.seed=8"), resume=True)


def test_finished_training_can_be_prolonged(toy_config, tmp_path):
    train(toy_config("run", epochs=1))
    assert train(toy_config("run", epochs=1), resume=True)["metrics"] == {}
    assert train(toy_config("run", epochs=2), resume=True)["metrics"]["epoch"] == 2


def test_damaged_state_is_said(toy_config, tmp_path):
    train(toy_config("run", epochs=1))
    state = tmp_path / "run" / STATE
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"last\.state\.safetensors is truncated"):
        train(toy_config("run", epochs=2), resume=True)
