"""The checkpoint file: round trip, atomic writes, clear refusals, old versions."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tesseral.training import checkpoint
from tesseral.training.checkpoint import (
    CheckpointError,
    is_sharded,
    read_checkpoint,
    read_header,
    write_checkpoint,
    write_shards,
)

HEADER = {"room": "potentials", "architecture": "facet", "reference_energies": {"1": -13.6}, "metrics": {}}


@pytest.fixture
def tensors():
    weight = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    return {
        "weight": weight,
        "transposed": weight.T,
        "part": weight[1],
        "half": torch.ones(2, dtype=torch.bfloat16),
    }


def test_round_trip_keeps_values_dtypes_and_header(tmp_path, tensors):
    path = write_checkpoint(tmp_path / "new" / "model.safetensors", tensors, HEADER)
    header, back = read_checkpoint(path)
    assert header == {**HEADER, "format": "tesseral", "format_version": checkpoint.FORMAT_VERSION}
    assert read_header(path) == header
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_header_takes_numpy_scalars_and_paths_but_not_nan(tmp_path):
    path = write_checkpoint(tmp_path / "a.safetensors", {}, {"rms": np.float64(0.5), "n": np.int64(3), "at": Path("x")})
    header = read_header(path)
    assert (header["rms"], header["n"], header["at"]) == (0.5, 3, "x")
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_checkpoint(tmp_path / "b.safetensors", {}, {"rms": float("nan")})
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_existing_file_is_kept_without_force(tmp_path, tensors):
    path = write_checkpoint(tmp_path / "m.safetensors", tensors, HEADER)
    with pytest.raises(CheckpointError, match=r"m\.safetensors exists already.*--force"):
        write_checkpoint(path, {}, HEADER)
    assert read_checkpoint(path)[1].keys() == tensors.keys()
    write_checkpoint(path, {}, HEADER, force=True)
    assert read_checkpoint(path)[1] == {}


def test_failed_write_leaves_the_old_file(tmp_path, tensors, monkeypatch):
    path = write_checkpoint(tmp_path / "m.safetensors", tensors, HEADER)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(path, {}, HEADER, force=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_truncated_file_is_said_to_be_truncated(tmp_path, tensors):
    path = write_checkpoint(tmp_path / "m.safetensors", tensors, HEADER)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"m\.safetensors is truncated"):
            read_checkpoint(path)


def test_foreign_files_are_refused_with_the_reason(tmp_path):
    plain = tmp_path / "foreign.safetensors"
    save_file({"a": torch.ones(1)}, plain)
    with pytest.raises(CheckpointError, match="not one of ours"):
        read_header(plain)
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_header(tmp_path)


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickles_are_refused_unopened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("old.ckpt", "wb") as file:
        pickle.dump(_Bomb(), file)
    torch.save({"bomb": _Bomb()}, "new.pt")
    for name in ("old.ckpt", "new.pt"):
        with pytest.raises(CheckpointError, match="pickled"):
            read_checkpoint(name)
    assert not Path("exploded").exists()


def test_state_and_model_are_not_mixed_up(tmp_path):
    path = write_checkpoint(tmp_path / "s.safetensors", {}, {"format": checkpoint.STATE_FORMAT})
    with pytest.raises(CheckpointError, match=r"holds the state of a training run.*a model is needed"):
        read_header(path)
    assert read_header(path, expect=checkpoint.STATE_FORMAT)["format"] == checkpoint.STATE_FORMAT


def test_versions_are_upgraded_step_by_step_and_newer_ones_refused(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "m.safetensors", {"old": torch.ones(2)}, {"a": 1})
    renames = [
        lambda header, tensors: (
            {**header, "b": header["a"] + 1},
            {"mid": tensors["old"]} if tensors else {},
        ),
        lambda header, tensors: (
            {**header, "c": header["b"] * 10},
            {"new": tensors["mid"]} if tensors else {},
        ),
    ]
    monkeypatch.setattr(checkpoint, "UPGRADES", renames)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 3)
    header, tensors = read_checkpoint(path)
    assert (header["c"], header["format_version"], list(tensors)) == (20, 3, ["new"])
    assert read_header(path)["c"] == 20
    monkeypatch.undo()
    newer = write_checkpoint(tmp_path / "n.safetensors", {}, {"format_version": 99})
    with pytest.raises(CheckpointError, match=r"format version 99.*upgrade tesseral"):
        read_header(newer)


def test_reading_a_header_does_not_load_torch(tmp_path):
    path = write_checkpoint(tmp_path / "m.safetensors", {"w": torch.ones(1)}, HEADER)
    code = (
        "import sys; from tesseral.training.checkpoint import read_header; "
        f"h = read_header({str(path)!r}); import json; print(json.dumps([h['room'], 'torch' in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == ["potentials", False]


def many_tensors():
    """300 kB in matrices, and what must keep its precision."""
    generator = torch.Generator().manual_seed(0)
    found = {f"layer.{k}": torch.randn(50, 100, generator=generator) for k in range(15)}
    return {
        **found,
        "bias": torch.full((100,), 1 / 3),
        "table": torch.ones(2, 2, dtype=torch.float64) / 3,
        "count": torch.tensor(3),
    }


@pytest.mark.parametrize("by", ["folder", "first file"])
def test_shards_open_as_one_checkpoint(tmp_path, by):
    tensors = many_tensors()
    folder = write_shards(tmp_path / "w", tensors, HEADER, max_mb=0.05)
    files = sorted(folder.iterdir())
    assert len(files) >= 3
    assert max(file.stat().st_size for file in files) <= 50_000
    path = folder if by == "folder" else files[0]
    header, back = read_checkpoint(path)
    assert header == {**HEADER, "format": "tesseral", "format_version": checkpoint.FORMAT_VERSION}
    assert read_header(path) == header
    assert back.keys() == tensors.keys()
    assert back["layer.3"].dtype == torch.bfloat16
    torch.testing.assert_close(back["layer.3"].float(), tensors["layer.3"], rtol=2**-8, atol=0)
    for name in ("bias", "table", "count"):
        assert back[name].dtype == tensors[name].dtype
        assert torch.equal(back[name], tensors[name])


def test_whole_shards_keep_every_bit_and_are_the_same_each_time(tmp_path):
    tensors = many_tensors()
    one = write_shards(tmp_path / "one", tensors, HEADER, max_mb=0.1, half=False)
    two = write_shards(tmp_path / "two", tensors, HEADER, max_mb=0.1, half=False)
    assert [f.read_bytes() for f in sorted(one.iterdir())] == [f.read_bytes() for f in sorted(two.iterdir())]
    back = read_checkpoint(one)[1]
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_shards_that_do_not_belong_together_are_refused(tmp_path):
    folder = write_shards(tmp_path / "w", many_tensors(), HEADER, max_mb=0.05)
    other = write_shards(tmp_path / "o", {k: t + 1 for k, t in many_tensors().items()}, HEADER, max_mb=0.05)
    second = sorted(folder.iterdir())[1]
    with pytest.raises(CheckpointError, match="later part of a model"):
        read_checkpoint(second)
    second.write_bytes((other / second.name).read_bytes())
    with pytest.raises(CheckpointError, match="another checkpoint"):
        read_checkpoint(folder)
    second.unlink()
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        read_checkpoint(folder)
    sorted(folder.iterdir())[0].unlink()
    with pytest.raises(CheckpointError, match="0 first parts"):
        read_checkpoint(folder)


def test_a_long_header_counts_as_it_is_written(tmp_path):
    """Quotes are escaped in the file, a quarter more than the text."""
    header = {**HEADER, "card": {str(k): "" for k in range(3000)}}
    folder = write_shards(tmp_path / "w", many_tensors(), header, max_mb=0.077)
    assert max(file.stat().st_size for file in folder.iterdir()) <= 77_000
    assert read_header(folder)["card"] == header["card"]


def test_shards_replace_only_shards(tmp_path):
    folder = write_shards(tmp_path / "w", many_tensors(), HEADER, max_mb=0.05)
    with pytest.raises(CheckpointError, match="--force"):
        write_shards(folder, {}, HEADER)
    write_shards(folder, {"a": torch.ones(1)}, HEADER, force=True)
    assert [file.name for file in folder.iterdir()] == ["weights-00001-of-00001.safetensors"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="other files"):
        write_shards(folder, {}, HEADER, force=True)
    assert is_sharded(folder)
    assert not is_sharded(tmp_path)
    assert not is_sharded(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="tensor wide needs"):
        write_shards(tmp_path / "wide", {"wide": torch.ones(100, 100)}, HEADER, max_mb=0.01)
    assert sorted(os.listdir(tmp_path)) == ["w"]
