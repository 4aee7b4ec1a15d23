"""`tesseral bench hamiltonian` with tiny networks in one process: all sides, what is left out, and what is wrong."""

import json

import numpy as np
import pytest

from tesseral.datasets.errors import UserError
from tesseral.scripts.bench import hamiltonian, hamiltonian_side
from tesseral.scripts.main import main

TINY = {"channels": 8, "bottleneck": 2, "hidden": 4, "edge_hidden": 2}


class Here:
    """A worker in this process."""

    def __init__(self, command):
        assert command == hamiltonian.COMMAND

    def ask(self, do, **values):
        return json.loads(json.dumps(hamiltonian_side.ACTIONS[do](**values)))

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(hamiltonian, "Worker", Here)
    sphnet = {**TINY, "heads": 2, "near_layers": 1, "far_layers": 1, "near_radial": 4}
    monkeypatch.setitem(hamiltonian_side.PRESETS, "small", ({**TINY, "layers": 2, "pair_layers": 1}, sphnet))
    monkeypatch.setattr(hamiltonian_side, "CHECKED", 5)
    monkeypatch.setattr("tesseral.scripts.bench.kernel_side.ENOUGH", 0.0)


def test_all_sides_are_right_and_timed(tiny, tmp_path, capsys):
    pytest.importorskip("e3nn", reason="e3nn is not installed: there is no peer")
    out = tmp_path / "hamiltonian.json"
    words = ["bench", "hamiltonian", "--preset", "small", "--sizes", "5,7", "--repeats", "2"]
    assert main([*words, "-o", str(out)]) == 0
    record = json.loads(out.read_text())
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "qhnet, e3nn layers" in record["checks"] and record["missing"] == {}
    assert all(check["right"] for check in record["checks"].values())
    assert record["sizes"]["7"]["facts"]["pairs"] == 21
    for found in record["sizes"].values():
        for path in hamiltonian_side.PATHS:
            assert list(found["times"][path]) == list(found["memory"][path]) == list(hamiltonian_side.SIDES)
            theirs, ours = (found["times"][path][side]["samples"] for side in (hamiltonian.PEER, "sphnet"))
            pairs = [a / b for a, b in zip(theirs, ours, strict=True)]
            assert found["ratios"][path]["sphnet"]["median"] == pytest.approx(float(np.median(pairs)))
            assert found["memory"][path]["sphnet"]["allocated"] > 0
    text = capsys.readouterr().out
    assert "aim: forward: SPHNet at least 7x faster than qhnet e3nn" in text
    assert main([*words, "-o", str(out)]) == 2


def test_the_peer_can_be_absent_or_too_large(tiny, monkeypatch, capsys):
    monkeypatch.setattr(hamiltonian, "find_spec", lambda name: None)
    options = {"preset": "small", "repeats": 1, "seed": 0}
    plan = hamiltonian.plan("5", "qhnet e3nn,sphnet", "forward", **options)
    assert plan.sides == ["sphnet"] and plan.missing == {"qhnet e3nn": "e3nn is not installed"}
    monkeypatch.undo()
    monkeypatch.setattr(hamiltonian, "Worker", Here)
    monkeypatch.setitem(hamiltonian_side.PRESETS, "small", (TINY, {**TINY, "heads": 2}))
    sizes = iter([1e6, 1e-9])
    monkeypatch.setattr(hamiltonian, "_free_memory", lambda: next(sizes))
    monkeypatch.setattr(hamiltonian_side, "CHECKED", 5)
    record = hamiltonian.bench(hamiltonian.plan("4,6", "sphnet", "forward", **options))
    assert "sphnet" in record["sizes"]["4"]["times"]["forward"] and not record["sizes"]["6"]["times"]["forward"]
    assert "would take about" in record["missing"]["sphnet, forward, 6 atoms"]


def test_a_wrong_result_is_said(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(hamiltonian_side.TOLERANCES, "float64", 1e-30)
    words = ["bench", "hamiltonian", "--preset", "small", "--sizes", "5", "--sides", "sphnet", "--repeats", "1"]
    assert main([*words, "--paths", "forward"]) == 1
    assert "WRONG: sphnet, rotated molecule" in capsys.readouterr().out


def test_bad_options():
    options = {"preset": "small", "repeats": 1, "seed": 0}
    for sizes, sides, paths, text in (
        ("twenty", "sphnet", "step", "numbers of atoms"),
        ("1", "sphnet", "step", "at least 2 atoms"),
        ("8", "sphinx", "step", "nothing is called sphinx"),
        ("8", "", "step", "nothing to time"),
        ("8", "sphnet", "leap", "nothing is called leap"),
    ):
        with pytest.raises(UserError, match=text):
            hamiltonian.plan(sizes, sides, paths, **options)
    with pytest.raises(UserError, match="--repeats"):
        hamiltonian.plan("8", "sphnet", "step", **{**options, "repeats": 0})


@pytest.mark.parametrize("n", [8, 14, 20, 40, 80])
def test_molecules_are_chains(n):
    """Bonds of C-C and C-H, four neighbours of every carbon, no atoms closer than that."""
    numbers, positions = hamiltonian_side.alkane(n)
    apart = np.linalg.norm(positions[:, None] - positions, axis=-1) + 10 * np.eye(n)
    assert len(numbers) == n and apart.min() > 1.08
    carbons = numbers == 6
    if n == 3 * carbons.sum() + 2:
        assert ((apart[carbons] < 1.6).sum(1) == 4).all()
    hydrogens = apart[~carbons][:, ~carbons]
    assert hydrogens.min() > 1.5
