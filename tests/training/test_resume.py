"""Resume is exact: kill -9, Ctrl-C and SIGTERM in the middle of an epoch change nothing of the result."""

import csv
import signal
import subprocess
import sys
import time

import pytest
import torch

from tesseral.potentials.fit import PotentialTraining, train
from tesseral.training.checkpoint import read_checkpoint, read_header
from tesseral.training.config import ConfigError, load_config

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


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)]
)
def test_interrupted_training_ends_with_the_same_weights(toy, toy_store, tmp_path, whole, number, code):
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(toy.config_text(toy_store, run, epochs=EPOCHS, ema=0.9))
    returned, errors = start_and_signal(path, run, number, states=4)
    assert returned == code, errors
    assert "Traceback" not in errors
    progress = read_header(run / STATE, expect="tesseral-state")["state"]["trainee"]["progress"]
    assert 0 < progress["step"] < 4 * EPOCHS
    train(load_config(PotentialTraining, path), resume=True)
    assert_equal_results(whole, run)


class Stop(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7, 8, 10])
def test_end_at_any_step_of_an_epoch(toy, toy_store, tmp_path, whole, monkeypatch, step):
    from tesseral.training.task import Trainee

    path, run = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(toy.config_text(toy_store, run, epochs=EPOCHS, ema=0.9, save_every=1))
    original = Trainee.step

    def fails_later(self, batch, n_batches):
        if self.progress.step == step:
            raise Stop
        return original(self, batch, n_batches)

    config = load_config(PotentialTraining, path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", fails_later)
        with pytest.raises(Stop):
            train(config)
    progress = read_header(run / STATE, expect="tesseral-state")["state"]["trainee"]["progress"]
    assert (progress["step"], 4 * progress["epoch"] + progress["batch"]) == (step, step)
    train(config, resume=True)
    assert_equal_results(whole, run)


def test_random_draws_of_a_task_continue_too(toy, toy_store, tmp_path, monkeypatch):
    from tesseral.potentials.task import PotentialTask
    from tesseral.training.task import Trainee

    plain = PotentialTask.losses

    def noisy(self, batch, *, training):
        batch.positions = batch.positions + 0.01 * torch.randn_like(batch.positions) * training
        return plain(self, batch, training=training)

    monkeypatch.setattr(PotentialTask, "losses", noisy)
    original, runs = Trainee.step, []
    for name in ("whole", "cut"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(toy.config_text(toy_store, tmp_path / name, epochs=2, save_every=1))
        runs.append(load_config(PotentialTraining, path))
    train(runs[0])

    def fails_later(self, batch, n_batches):
        if self.progress.step == 6:
            raise Stop
        return original(self, batch, n_batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", fails_later)
        with pytest.raises(Stop):
            train(runs[1])
    train(runs[1], resume=True)
    assert_equal_results(tmp_path / "whole", tmp_path / "cut")


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


def test_prodigy_resumes_exactly(toy, toy_store, tmp_path, monkeypatch):
    pytest.importorskip("prodigyopt")
    from tesseral.training.task import Trainee

    original, runs = Trainee.step, []
    for name in ("whole", "cut"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(toy.config_text(toy_store, tmp_path / name, epochs=2, save_every=1))
        runs.append(load_config(PotentialTraining, path, ["optimizer.name=prodigy"]))
    train(runs[0])

    def fails_later(self, batch, n_batches):
        if self.progress.step == 5:
            raise Stop
        return original(self, batch, n_batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", fails_later)
        with pytest.raises(Stop):
            train(runs[1])
    train(runs[1], resume=True)
    assert_equal_results(tmp_path / "whole", tmp_path / "cut")


def test_damaged_state_is_said(toy_config, tmp_path):
    train(toy_config("run", epochs=1))
    state = tmp_path / "run" / STATE
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"last\.state\.safetensors is truncated"):
        train(toy_config("run", epochs=2), resume=True)
