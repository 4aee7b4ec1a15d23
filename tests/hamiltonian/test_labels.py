"""Labels by PySCF: their values, what gets none, the level of theory, jobs that are interrupted."""

import json

import h5py
import numpy as np
import pytest

from tesseral.datasets.errors import UserError
from tesseral.datasets.structure import Structure
from tesseral.datasets.write import write
from tesseral.potentials.hamiltonian.level import RESOLVED, Level
from tesseral.scripts.main import main

pytest.importorskip("pyscf", reason="the extra `hamiltonian` (PySCF) is not installed")

from tesseral.potentials.hamiltonian import labelling
from tesseral.potentials.hamiltonian.grid import DenseIntegrator
from tesseral.potentials.hamiltonian.labels import (
    LabelError,
    check_level,
    complete,
    label,
    layout_of,
    level_of_theory,
    mean_field,
    molecule,
)
from tesseral.potentials.hamiltonian.layout import layout
from tesseral.potentials.hamiltonian.store import LabelFile, pack

FAST = level_of_theory("pbe", "def2-svp", 0)


def water(shift=0.0, **changes):
    positions = np.array([[0.0, 0.0, 0.117 + shift], [0.0, 0.757, -0.47], [0.0, -0.757, -0.47]])
    return Structure([8, 1, 1], positions, **changes)


def test_labels_are_those_of_the_stored_set(shared_data):
    with h5py.File(shared_data("hamiltonian/qm9small_b3lyp_def2svp.h5")) as file:
        group = file["gdb_000008"]
        stored, energy = group["hamiltonian"][:], float(group.attrs["energy_Ha"])
        made = label(Structure(group["numbers"][:], group["positions"][:]), level_of_theory("b3lyp", "def2-svp"))
    assert np.abs(pack(made.hamiltonian) - stored).max() < 1e-9
    assert abs(made.energy - energy) < 1e-9
    assert made.delta is not None and 1e-3 < np.abs(made.delta).mean() < 1e-2
    np.testing.assert_array_equal(made.delta, made.hamiltonian - made.guess)


def test_two_forms_of_b3lyp_are_never_taken_for_each_other():
    gaussian, vwn5 = level_of_theory("B3LYP", "def2-SVP"), level_of_theory("b3lyp5", "def2-svp")
    assert (gaussian.resolved, vwn5.resolved) == (RESOLVED["b3lyp"], RESOLVED["b3lyp5"])
    made, other = label(water(), gaussian), label(water(), vwn5)
    assert np.abs(made.hamiltonian - other.hamiltonian).max() > 1e-3
    assert check_level(made, gaussian) < 1e-5
    with pytest.raises(LabelError, match=r"not a converged Fock matrix of b3lyp5 .* off by 4\.\d+ mEh"):
        check_level(made, vwn5)
    with pytest.raises(UserError, match="two forms of B3LYP differ by up to 4 mEh"):
        gaussian.require_same(vwn5, "a.h5", "b.h5")
    with pytest.raises(UserError, match="means 1 xc:402 to this PySCF"):
        mean_field(molecule(water().numbers, water().positions, "def2-svp"), Level("b3lyp", "x", "def2-svp", 3))


@pytest.mark.parametrize("functional", ["lda,vwn", "pbe", "b3lyp", "tpss"])
def test_dense_integration_is_that_of_pyscf(functional):
    from pyscf import dft

    mf = dft.RKS(molecule(water().numbers, water().positions, "def2-svp"), xc=functional)
    mf.grids.level = 0
    density = mf.get_init_guess(key="minao") + 0.0
    want = mf._numint.nr_rks(mf.mol, mf.grids, functional, density)
    dense = DenseIntegrator()
    for _ in range(2):  # the second time with the orbitals that were kept
        got = dense.nr_rks(mf.mol, mf.grids, functional, density)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-12)


def test_layout_of_any_basis():
    assert layout_of("def2-SVP", [1, 6, 7, 8, 9]) == layout("def2-svp")
    assert layout_of("6-31g", [1, 8]).irreps == (3, 2)
    with pytest.raises(UserError, match="PySCF has no basis 'def2-nope' for O"):
        layout_of("def2-nope", [8])
    with pytest.raises(UserError, match="PySCF knows no functional 'pbeeee'"):
        level_of_theory("pbeeee", "def2-svp")


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (water(charge=1.0), r"charge \+1: only neutral"),
        (water(spin=3), "multiplicity 3: only closed shells"),
        (Structure([8, 1], [[0, 0, 0], [0, 0, 0.97]]), "9 electrons: an open shell"),
        (water(pbc=True, cell=np.eye(3) * 9), "periodic cell"),
        (Structure([1, 1], [[0, 0, 0], [0, 0, 0.1]]), "0.100 Å apart"),
        (water(float("nan")), "finite|NaN"),
    ],
)
def test_what_is_no_closed_shell_molecule_gets_a_reason(structure, reason):
    with pytest.raises(UserError, match=reason):
        label(structure, FAST)


def test_scf_that_does_not_converge_gives_no_label(monkeypatch):
    monkeypatch.setattr("tesseral.potentials.hamiltonian.labels.MAX_CYCLE", 3)
    with pytest.raises(LabelError, match="did not converge in 3 cycles"):
        label(water(), FAST)


def test_complete_adds_guess_and_overlap_and_refuses_other_geometries():
    made = label(water(), FAST)
    bare = labelling.Label(made.numbers, made.positions, hamiltonian=made.hamiltonian, overlap=made.overlap)
    full = complete(bare, FAST)
    np.testing.assert_allclose(full.guess, made.guess, rtol=0, atol=1e-12)
    again = complete(full.compact(), FAST)
    assert np.abs(again.hamiltonian - made.hamiltonian).max() < 1e-6
    bare.positions = made.positions * 1.01
    with pytest.raises(LabelError, match="stored overlap differs"):
        complete(bare, FAST)


@pytest.fixture
def molecules(tmp_path):
    frames = [water(0.02 * k, info={"name": f"w{k}"}) for k in range(3)]
    frames.insert(1, Structure([8, 1], [[0, 0, 0], [0, 0, 0.97]], info={"name": "hydroxyl"}))
    path = tmp_path / "molecules.extxyz"
    write(path, frames)
    return path


def run(*arguments):
    return main(["data", "hamiltonian", *map(str, arguments), "--functional", "pbe", "--grid-level", "0"])


def test_command_labels_in_parallel_and_lists_failures(molecules, tmp_path, capsys):
    out = tmp_path / "H.h5"
    assert run(molecules, "-o", out, "--processes", 2, "--json", tmp_path / "H.json", "--forces") == 0
    file = LabelFile(out)
    assert len(file) == 3 and file.names == ["w0", "w1", "w2"]
    assert file.level == FAST and file.layout == layout("def2-svp", [1, 8])
    assert file.provenance["command"][:3] == ["tesseral", "data", "hamiltonian"]
    assert file[1].forces[1, 1] == pytest.approx(-file[1].forces[2, 1], abs=1e-6) and file[1].forces[1, 1] > 0.1
    want = label(water(0.02), FAST)
    np.testing.assert_allclose(file[1].hamiltonian, want.hamiltonian, rtol=0, atol=1e-9)
    record = json.loads((tmp_path / "H.json").read_text())
    assert [f["name"] for f in record["failures"]] == ["hydroxyl"] and record["n_labels"] == 3
    assert "open shell" in (tmp_path / "H.h5.failures.json").read_text()
    assert run(molecules, "-o", out) == 2
    assert "exists already" in capsys.readouterr().err
    write(tmp_path / "one.xyz", [water(charge=1.0)])
    assert run(tmp_path / "one.xyz", "-o", tmp_path / "none.h5") == 2
    assert "none of the 1 molecules has a label" in (error := capsys.readouterr().err) and "only neutral" in error


def test_interrupted_job_goes_on_where_it_was(molecules, tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "H.h5", []
    real = labelling.label

    def counted(structure, *args, **kwargs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return real(structure, *args, **kwargs)

    monkeypatch.setattr(labelling, "label", counted)
    assert run(molecules, "-o", out) == 130
    assert not out.exists() and len(list((tmp_path / "H.h5.partial").glob("*.npz"))) == 2
    assert run(molecules, "-o", out) == 2
    assert "go on (--resume)" in capsys.readouterr().err
    assert run(molecules, "-o", tmp_path / "other.h5", "--resume") == 2
    assert main(["data", "hamiltonian", str(molecules), "-o", str(out), "--functional", "pbe0", "--resume"]) == 2
    assert "another job" in capsys.readouterr().err
    assert run(molecules, "-o", out, "--collect") == 0
    assert LabelFile(out).names == ["w0", "w1"]
    calls.clear()
    assert run(molecules, "-o", out, "--resume") == 0
    assert len(calls) == 2  # the molecule that failed is tried again
    assert LabelFile(out).names == ["w0", "w1", "w2"] and not (tmp_path / "H.h5.partial").exists()
