"""`tesseral evaluate`: right numbers in the promised layout, plot, and clear words where labels lack."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tesseral.datasets.store_writer import write_store
from tesseral.potentials import save
from tesseral.scripts.main import main

TOY = Path(__file__).parents[1] / "training" / "toy.py"


@pytest.fixture(scope="module")
def toy():
    spec = importlib.util.spec_from_file_location("tesseral_test_toy", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(toy, tmp_path_factory):
    """The teacher that labelled the toy data: without errors by construction."""
    return save(toy.teacher(), tmp_path_factory.mktemp("model") / "teacher.safetensors")


def run(model, frames, tmp_path, *words):
    """The JSON of one evaluation."""
    write_store(tmp_path / "data.h5", frames)
    out = tmp_path / "out.json"
    assert main(["evaluate", str(model), str(tmp_path / "data.h5"), "--json", str(out), *words]) == 0
    return json.loads(out.read_text())


def test_a_perfect_model_has_no_error(toy, model, tmp_path):
    report = run(model, toy.frames(8), tmp_path)
    assert report["n_frames"] == 8
    for name, unit in (("energy_per_atom", "meV/atom"), ("forces", "meV/Å"), ("stress", "GPa")):
        assert report[name]["unit"] == unit
        assert report[name]["rmse"] < 1e-8
    assert "evaluate" in report["command"]
    assert "torch" in report["versions"]


def test_known_errors_are_found_where_they_are(toy, model, tmp_path):
    frames = toy.frames(8)
    for frame in frames:
        if frame.info["config_type"] == "cluster":
            frame.labels["energy"] = frame.labels["energy"] + 0.005 * frame.n_atoms
        else:
            frame.labels["stress"] = frame.labels["stress"] + np.array([6, 0, 0, 0, 0, 0]) / 160.21766208
        frame.labels["forces"] = frame.labels["forces"] + np.where(frame.numbers == 8, 0.3, 0.0)[:, None]
    report = run(model, frames, tmp_path)
    assert report["energy_per_atom"]["mae"] == pytest.approx(2.5)
    assert report["energy_per_atom"]["rmse"] == pytest.approx(5 / 2**0.5)
    assert report["by_config_type"]["cluster"]["energy_per_atom"]["mae"] == pytest.approx(5.0)
    assert report["by_config_type"]["crystal"]["energy_per_atom"]["mae"] == pytest.approx(0.0, abs=1e-8)
    assert "stress" not in report["by_config_type"]["cluster"]
    assert report["by_config_type"]["crystal"]["n_frames"] == 4
    assert report["stress"]["mae"] == pytest.approx(1.0, rel=1e-6)
    assert report["by_element"]["O"]["forces"]["mae"] == pytest.approx(300.0)
    assert report["by_element"]["H"]["forces"]["rmse"] == pytest.approx(0.0, abs=1e-8)
    share = np.mean(np.concatenate([f.numbers for f in frames]) == 8)
    assert report["forces"]["mae"] == pytest.approx(300 * share)


def test_absent_labels_are_left_out_and_said(toy, model, tmp_path, capsys):
    frames = toy.frames(6)
    for frame in frames:
        frame.labels.pop("stress", None)
    for frame in frames[:4]:
        del frame.labels["forces"]
    report = run(model, frames, tmp_path)
    assert "stress" not in report
    assert sum(entry["n_atoms"] for entry in report["by_element"].values()) == sum(f.n_atoms for f in frames[4:])
    assert "no frame has a label for the stress: left out" in capsys.readouterr().out


def test_no_labels_at_all_names_the_keys_present(toy, model, tmp_path, capsys):
    frames = toy.frames(2)
    for frame in frames:
        frame.labels.clear()
        frame.info["e_tot_dft"] = -1.0
    write_store(tmp_path / "bare.h5", frames)
    assert main(["evaluate", str(model), str(tmp_path / "bare.h5")]) == 2
    error = capsys.readouterr().err
    assert "no frame has an energy, forces or stress" in error
    assert "e_tot_dft" in error
    assert "--keys energy=KEY" in error


def test_unknown_element_and_model(toy, model, tmp_path, capsys):
    frames = toy.frames(2)
    frames[1].numbers[0] = 17
    write_store(tmp_path / "cl.h5", frames)
    assert main(["evaluate", str(model), str(tmp_path / "cl.h5")]) == 2
    assert "does not know Cl" in capsys.readouterr().err
    assert main(["evaluate", "no-such-model", str(tmp_path / "cl.h5")]) == 2
    assert "no-such-model" in capsys.readouterr().err


def test_plot_is_written_once_and_kept_without_force(toy, model, tmp_path, capsys):
    plot = tmp_path / "parity.png"
    run(model, toy.frames(6), tmp_path, "--plot", str(plot))
    first = plot.read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(first) > 10_000
    assert main(["evaluate", str(model), str(tmp_path / "data.h5"), "--plot", str(plot)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert plot.read_bytes() == first


def test_one_frame_of_constant_labels_can_be_plotted(toy, model, tmp_path):
    frame = toy.frames(1)[0]
    del frame.labels["forces"]
    run(model, [frame], tmp_path, "--plot", str(tmp_path / "one.svg"))
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")


def test_isolated_atoms_are_exact(toy, model, tmp_path):
    from tesseral.datasets.structure import Structure

    labels = {"energy": np.array(-13.6), "forces": np.zeros((1, 3))}
    report = run(model, [Structure([1], np.zeros((1, 3)), labels=labels)], tmp_path)
    assert report["energy_per_atom"]["mae"] < 1e-9
    assert report["forces"]["mae"] == 0
