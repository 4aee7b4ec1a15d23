"""The GPU's one-command benchmark, rehearsed on the CPU: it must run on the day when a GPU is at hand."""

import json
import os
import subprocess
import sys

import pytest


def test_rehearsal(tmp_path):
    pytest.importorskip("triton")
    words = [
        sys.executable,
        "-m",
        "tesseral.scripts.bench.gpu",
        "--rehearse",
        "-o",
        str(tmp_path / "gpu.json"),
    ]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert len(record["correctness"]) > 20
    assert all(row["right"] for row in record["correctness"])
    assert {"L=1 C=2 message", "L=1 C=2 double backward"} <= {row["kernel"] for row in record["timings"]}
    assert [row["step"] for row in record["steps"]] == ["2 atoms float32", "2 atoms float64"]


def test_a_gpu_is_asked_for(tmp_path):
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "tesseral.scripts.bench.gpu"]
    run = subprocess.run(words, capture_output=True, text=True, env=hidden, check=False)
    assert run.returncode == 2
    assert "no CUDA device" in run.stderr
