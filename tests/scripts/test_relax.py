"""`tesseral relax` from the command line to the files."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read

from tesseral.datasets.store import Store
from tesseral.scripts.main import main


@pytest.fixture
def several(tmp_path):
    """Path of a file with three molecules."""
    path = tmp_path / "several.extxyz"
    for i, name in enumerate(("H2O", "CH4", "CO2")):
        molecule(name).write(path, append=i > 0)
    return path


def test_several_structures(shipped, several, tmp_path, capsys):
    out = tmp_path / "relaxed.extxyz"
    code = main(f"relax {several} -o {out} --fmax 0.05 --steps 300 --json {tmp_path / 'r.json'}".split())
    text = capsys.readouterr()
    assert code == 0, text.err
    assert "model tiny-organic (the shipped model that covers these structures)" in text.out
    frames = read(out, ":")
    assert [f.get_chemical_formula() for f in frames] == ["H2O", "CH4", "CO2"]
    assert all(np.linalg.norm(f.get_forces(), axis=1).max() <= 0.05 for f in frames)
    record = json.loads((tmp_path / "r.json").read_text())
    assert [s["converged"] for s in record["structures"]] == [True] * 3
    assert record["structures"][0]["fmax"]["unit"] == "eV/Å"


def test_choice_of_frames_and_store(shipped, several, tmp_path):
    assert main(f"relax {several} -o {tmp_path / 'one.h5'} --index 1 --fmax 0.1".split()) == 0
    store = Store(tmp_path / "one.h5")
    assert len(store) == 1 and store[0].formula == "CH4"


def test_unconverged_structures_are_written_and_named(shipped, several, tmp_path, capsys):
    out = tmp_path / "relaxed.extxyz"
    assert main(f"relax {several} -o {out} --steps 1 --fmax 1e-5 --json {tmp_path / 'r.json'}".split()) == 2
    text = capsys.readouterr()
    assert "3 of 3 structures did not converge in 1 steps (frames 0, 1, 2)" in text.err
    assert "NOT CONVERGED" in text.out and len(read(out, ":")) == 3
    assert not json.loads((tmp_path / "r.json").read_text())["structures"][0]["converged"]


def test_cell_and_trajectory(shipped, copper, tmp_path, capsys):
    command = f"relax {copper} -o {tmp_path / 'POSCAR.vasp'} --cell xx,yy,zz --steps 3"
    main([*command.split(), "--trajectory", str(tmp_path / "t.traj")])
    assert "stress" in capsys.readouterr().out
    assert len(read(tmp_path / "t.traj", ":")) == 4
    assert len(read(tmp_path / "POSCAR.vasp")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--cell", "three periodic axes"),
        ("--cell zx", "write all, volume, shape"),
        ("--symmetry", "three periodic axes"),
        ("--fmax -1", "must be positive"),
        ("--trajectory t.traj", "choose one with --index"),
        ("--index 7", "has no frame '7'"),
        ("--model missing", "no model 'missing'"),
    ],
)
@pytest.mark.usefixtures("shipped")
def test_user_errors_are_one_line(several, tmp_path, capsys, options, message):
    assert main(f"relax {several} -o {tmp_path / 'out.extxyz'} {options}".split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out.extxyz").exists()


def test_element_error_names_the_frame(shipped, tmp_path, capsys):
    path = tmp_path / "in.extxyz"
    molecule("H2O").write(path)
    Atoms("OU", positions=[[0, 0, 0], [0, 0, 2]]).write(path, append=True)
    code = main(f"relax {path} -o {tmp_path / 'out.extxyz'} --model tiny-organic --fmax 0.1".split())
    text = capsys.readouterr()
    assert code == 2
    assert "frame 1 of those chosen" in text.err and "does not know U" in text.err
    assert "1 of 2 structures in" in text.out and len(read(tmp_path / "out.extxyz", ":")) == 1


def test_nothing_is_overwritten(shipped, water, tmp_path, capsys):
    command = f"relax {water} -o {tmp_path / 'out.extxyz'} --fmax 0.1"
    assert main(command.split()) == 0
    assert main(command.split()) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command.split(), "--force"]) == 0
