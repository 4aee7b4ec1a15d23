"""Two gloo processes under torchrun do what one process does on the same global batch."""

import csv
import socket
import subprocess
import sys

import pytest

from tesseral.potentials.fit import PotentialTraining, train
from tesseral.training.checkpoint import read_checkpoint
from tesseral.training.config import load_config

START = "import sys; from tesseral.scripts.main import main; sys.exit(main(sys.argv[1:]))"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def under_torchrun(folder, *arguments):
    script = folder / "start.py"
    script.write_text(START)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
    ]
    run = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if k not in ("time_s",)} for row in csv.DictReader(file)]


def test_two_processes_equal_one(toy, tmp_path):
    frames = toy.frames(24)
    for frame in frames[::3]:  # unequal masks on the two processes
        del frame.labels["forces"]
    for frame in frames[1::4]:
        del frame.labels["energy"]
    from tesseral.datasets.store_writer import write_store

    write_store(tmp_path / "toy.h5", frames)
    for name in ("one", "two"):
        text = toy.config_text(tmp_path / "toy.h5", tmp_path / name, epochs=3).replace("batch_size: 4", "batch_size: 5")
        (tmp_path / f"{name}.yaml").write_text(text)
    train(load_config(PotentialTraining, tmp_path / "one.yaml"))
    printed = under_torchrun(tmp_path, "train", tmp_path / "two.yaml")
    assert printed.count("epoch 3/3") == 1  # one process speaks
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-7)  # the file holds eight digits
    for name in ("model", "best"):
        a, b = (read_checkpoint(tmp_path / n / f"{name}.safetensors")[1] for n in ("one", "two"))
        for key in a:
            assert (a[key] - b[key]).abs().max() <= 1e-12 * a[key].abs().max().clamp(min=1), key
    under_torchrun(tmp_path, "train", tmp_path / "two.yaml", "training.epochs=4", "--resume")
    assert len(rows_of(tmp_path / "two")) == 4
