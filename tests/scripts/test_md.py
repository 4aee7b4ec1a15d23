"""`tesseral md` from the command line to the files."""

import json

import pytest
from ase import Atoms
from ase.io import read

from tesseral.scripts.main import main


def test_default_model_files_figure_and_json(shipped, water, tmp_path, capsys):
    out = tmp_path / "run.extxyz"
    code = main(
        f"md {water} -o {out} --steps 20 --every 5 --seed 3 --temperature 150 "
        f"--plot {tmp_path / 'run.png'} --json {tmp_path / 'run.json'}".split()
    )
    text = capsys.readouterr().out
    assert code == 0, text
    assert "model tiny-organic (the shipped model that covers this structure)" in text
    assert "meV/atom/ps" in text and "steps/s" in text and "seed            3" in text
    assert len(read(out, ":")) == 5
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["model"] == "tiny-organic" and record["seed"] == 3
    assert record["settings"]["temperature_K"] == 150
    assert record["command"].startswith("tesseral md") and "torch" in record["versions"]
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_periodic_structure_takes_the_periodic_model(shipped, copper, tmp_path, capsys):
    assert main(f"md {copper} -o {tmp_path / 'run.h5'} --steps 4 --ensemble npt --dtype float64".split()) == 0
    assert "model tiny-solids" in capsys.readouterr().out


def test_resume(shipped, water, tmp_path, capsys):
    out = tmp_path / "run.traj"
    assert main(f"md {water} -o {out} --steps 10 --every 2 --timestep 0.5".split()) == 0
    assert main(f"md {water} -o {out} --steps 20 --resume".split()) == 0
    assert len(read(out, ":")) == 11
    assert main(f"md {water} -o {out} --steps 20 --resume".split()) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(f"md {water} -o {out} --steps 30 --resume --timestep 1".split()) == 2
    assert "timestep_fs was 0.5, is 1.0" in capsys.readouterr().err


def test_stop_is_told_and_recorded(shipped, water, tmp_path, capsys):
    command = f"md {water} -o {tmp_path / 'run.extxyz'} --steps 50 --max-temperature 1 --json {tmp_path / 'r.json'}"
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "stopped at step 0: the temperature reached" in error
    assert json.loads((tmp_path / "r.json").read_text())["stopped"]["step"] == 0


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("OU", positions=[[0, 0, 0], [0, 0, 2]]), "no shipped model covers O U (non-periodic)"),
        (Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.4]]), "no shipped model covers Cu (non-periodic)"),
        (Atoms("O", cell=[4, 4, 4], pbc=True), "no shipped model covers O (periodic)"),
    ],
)
def test_no_model_covers_it(shipped, tmp_path, capsys, atoms, message):
    atoms.write(tmp_path / "in.extxyz")
    assert main(f"md {tmp_path / 'in.extxyz'} -o {tmp_path / 'run.extxyz'} --steps 1".split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "tiny-organic: H C O (molecules); tiny-solids: Cu (periodic)" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--steps 1 --model nothing.safetensors", "no model 'nothing.safetensors'"),
        ("--steps 1 --timestep -1", "timestep_fs = -1.0: must be a positive"),
        ("--steps 1 --ensemble npt", "npt needs three periodic axes"),
        ("--steps 1 --index :", "chooses 2 frames"),
        ("--steps 1 --device cuda:9", "not on this machine"),
        ("--steps 1 --resume", "no such state file"),
    ],
)
def test_user_errors_are_one_line(shipped, tmp_path, capsys, options, message):
    path = tmp_path / "two.extxyz"
    for append in (False, True):
        Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.13]]).write(path, append=append)
    assert main(f"md {path} -o {tmp_path / 'run.extxyz'} {options}".split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_nothing_is_overwritten(shipped, water, tmp_path, capsys):
    command = f"md {water} -o {tmp_path / 'run.extxyz'} --steps 2"
    assert main(command.split()) == 0
    assert main(command.split()) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command.split(), "--force"]) == 0
