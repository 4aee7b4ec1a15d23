"""`tesseral data`: convert, inspect, check, split on real files, and a conversion that is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tesseral.datasets.read import read
from tesseral.datasets.store import Store
from tesseral.datasets.structure import Structure
from tesseral.datasets.write import write
from tesseral.scripts.main import main


def waters(n_frames: int, seed: int = 0) -> list[Structure]:
    rng = np.random.default_rng(seed)
    shape = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    frames = []
    for k in range(n_frames):
        labels = {"energy": -14.0 + rng.normal(), "forces": rng.normal(size=(3, 3))}
        moved = shape + rng.normal(scale=0.02, size=(3, 3))
        frames.append(Structure([8, 1, 1], moved, labels=labels, info={"config_type": f"run{k % 4}", "step": k}))
    return frames


@pytest.fixture
def extxyz(tmp_path):
    path = tmp_path / "water.extxyz"
    write(path, waters(40))
    return path


def run(*words) -> int:
    return main(["data", *map(str, words)])


def refused(capsys, *words) -> str:
    """The one line of an error that the user can mend."""
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("tesseral: error: ") and "\n" not in error
    return error


def test_convert_keeps_everything_and_overwrites_nothing(extxyz, tmp_path, capsys):
    out = tmp_path / "water.h5"
    assert run("convert", extxyz, "-o", out, "--json", tmp_path / "convert.json") == 0
    assert "40 frames in" in capsys.readouterr().out
    stored, source = Store(out), read(extxyz)
    for a, b in zip(stored, source, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.labels["forces"], b.labels["forces"])
        assert a.labels["energy"] == b.labels["energy"] and a.info == b.info
    assert stored.provenance["command"][:3] == ["tesseral", "data", "convert"]
    assert json.loads((tmp_path / "convert.json").read_text())["n_frames"] == 40
    before = out.read_bytes()
    assert "exists" in refused(capsys, "convert", extxyz, "-o", out)
    assert out.read_bytes() == before
    assert run("convert", extxyz, "-o", out, "--force") == 0
    assert run("convert", extxyz, "-o", out, "--append") == 0 and len(Store(out)) == 80


def test_convert_takes_keys_and_units_and_other_formats(extxyz, tmp_path, capsys):
    out = tmp_path / "turned.extxyz"
    options = ["--units", "energy=kcal/mol", "--keys", "forces=-forces"]
    assert run("convert", extxyz, "-o", out, *options) == 0
    first, second = read(extxyz)[0], read(out)[0]
    factor = 0.0433641
    assert second.labels["energy"] == pytest.approx(factor * float(first.labels["energy"]), rel=1e-5)
    np.testing.assert_allclose(second.labels["forces"], -factor * first.labels["forces"], rtol=1e-5)
    assert "unknown unit" in refused(capsys, "convert", extxyz, "-o", tmp_path / "a.h5", "--units", "energy=foo")
    assert "are for stores" in refused(capsys, "convert", extxyz, "-o", tmp_path / "a.xyz", "--resume")
    assert "no such file" in refused(capsys, "convert", tmp_path / "none.xyz", "-o", tmp_path / "a.h5")


def test_a_killed_conversion_resumes_and_gives_the_same_store(tmp_path, capsys):
    source, out, whole = tmp_path / "many.extxyz", tmp_path / "many.h5", tmp_path / "whole.h5"
    write(source, waters(6_000))
    command = [
        sys.executable,
        "-m",
        "tesseral",
        "data",
        "convert",
        str(source),
        "-o",
        str(out),
        "--save-every",
        "0.05",
    ]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    partial = tmp_path / "many.h5.partial"
    limit = time.monotonic() + 120
    while len(list(partial.glob("part-*.h5"))) < 3 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists() and list(partial.glob("part-*.h5"))

    assert "--resume" in refused(capsys, "convert", source, "-o", out)
    assert run("convert", source, "-o", out, "--resume") == 0
    assert run("convert", source, "-o", whole) == 0
    assert Store(out).checksum == Store(whole).checksum and not partial.exists()
    Store(out).verify()


def test_inspect_prints_draws_and_writes_json(extxyz, tmp_path, capsys):
    plot, numbers = tmp_path / "h.png", tmp_path / "h.json"
    assert run("inspect", extxyz, "--plot", plot, "--json", numbers) == 0
    assert "40 frames, 120 atoms" in capsys.readouterr().out
    record = json.loads(numbers.read_text())
    assert record["elements"] == {"H": 80, "O": 40} and "tesseral" in record["versions"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "exists already" in refused(capsys, "inspect", extxyz, "--plot", plot)


def test_check_finds_the_published_gradients(shared_data, tmp_path, capsys):
    raw, numbers = shared_data("comp6_s66x8/raw_first10.h5"), tmp_path / "findings.json"
    assert run("check", raw, "--json", numbers) == 2
    assert "[fatal] Forces have the wrong sign" in capsys.readouterr().out
    record = json.loads(numbers.read_text())
    assert record["n_frames"] == 80 and record["findings"][0]["level"] == "fatal"
    assert run("check", raw, "--keys", "forces=-forces") == 0


def test_check_passes_sound_data(shared_data, capsys):
    assert run("check", shared_data("3bpa/train_300K.extxyz.gz"), shared_data("3bpa/isolated_atoms.extxyz.gz")) == 0
    assert "No faults found." in capsys.readouterr().out


def test_split_writes_one_file_per_part_and_tears_no_group(extxyz, tmp_path, capsys):
    words = [
        "split",
        extxyz,
        "--fractions",
        0.5,
        0.25,
        0.25,
        "--by",
        "config_type",
        "--json",
        tmp_path / "s.json",
    ]
    assert run(*words) == 0
    parts = [read(tmp_path / f"water_{name}.extxyz") for name in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [20, 10, 10]
    groups = [{s.info["config_type"] for s in part} for part in parts]
    assert not groups[0] & groups[1] and not groups[1] & groups[2] and not groups[0] & groups[2]
    assert sorted(s.info["step"] for part in parts for s in part) == list(range(40))
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["parts"]["test"]["frames"] == [s.info["step"] for s in parts[2]]
    assert "exists already" in refused(capsys, *words)


def test_split_is_seeded_and_its_stores_remember_where_they_come_from(extxyz, tmp_path):
    steps = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = [
            "split",
            extxyz,
            "--fractions",
            0.8,
            0.2,
            "--seed",
            seed,
            "--format",
            "h5",
            "-o",
            tmp_path / name,
        ]
        assert run(*words) == 0
        store = Store(tmp_path / f"{name}_train.h5")
        steps[name] = [s.info["step"] for s in store]
        assert store.provenance["part"] == "train"
    assert steps["a"] == steps["b"] != steps["c"]


def test_split_refuses_what_cannot_be(extxyz, capsys):
    assert "sum to 1" in refused(capsys, "split", extxyz, "--fractions", 0.5, 0.1)
    assert "2 different --names" in refused(capsys, "split", extxyz, "--fractions", 0.5, 0.5, "--names", "a")
    assert "no key 'phase'" in refused(capsys, "split", extxyz, "--fractions", 0.5, 0.5, "--by", "phase")


@pytest.mark.parametrize("action", ["convert", "inspect", "check", "split"])
def test_every_action_has_help_with_an_example(action, capsys):
    assert run(action, "--help") == 0
    assert f"example:\n  tesseral data {action} " in capsys.readouterr().out
