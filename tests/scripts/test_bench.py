"""`tesseral bench potentials`: our side alone, the protocol with a made-up peer, and what happens when peers fail."""

import json
import sys

import numpy as np
import pytest
from ase import Atoms

from tesseral.scripts.bench import potentials
from tesseral.scripts.bench.machine import commit
from tesseral.scripts.bench.systems import ELEMENTS, SYSTEMS
from tesseral.scripts.bench.workers import Worker, WorkerError, peer_command
from tesseral.scripts.main import main

MACE_SIDE = potentials.PEERS["mace"]
FAKE = """
import sys, time
class Side:
    def __init__(self, options):
        print("noise on stdout")
        self.cutoff = options["cutoff"]
        assert not any(name.split(".")[0] == "tesseral" for name in sys.modules)
    def describe(self):
        return {"model": "Fake", "weights": "none", "parameters": 0, "threads": 1, "versions": {"fake": "1"}}
    def load(self, system, paths):
        self.paths, self.last = paths, -1
        return sum(len(frame) for frame in system["frames"])
    def evaluate(self, path, k):
        if path not in self.paths or FAILS:
            raise FloatingPointError(f"cannot {path}")
        assert k == self.last + 1, "the count of evaluations must go on"
        self.last = k
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
"""
OPTIONS = {"elements": ELEMENTS, "cutoff": 5.0, "seed": 0}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake(fails)` makes a peer called `fake`, whose evaluations take 50 ms of CPU time or fail."""

    def make(fails=False):
        side = tmp_path / "fake_side.py"
        side.write_text(FAKE.replace("FAILS", repr(fails)))
        monkeypatch.setitem(potentials.PEERS, "fake", side)
        return side

    return make


def bench(tmp_path, *words):
    """The record of one short run."""
    out = tmp_path / "record.json"
    assert main(["bench", "potentials", "--repeats", "1", *words, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_our_side_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(potentials, "ENOUGH", 0.0)
    record = bench(tmp_path, "--systems", "molecule,training", "--models", "random@reference")
    assert record["settings"]["dtype"] == "float32" and record["settings"]["threads"] == 1
    assert {"processor", "cores", "load_average"} <= set(record["machine"])
    assert (record["commit"] is None) == (commit() is None) and "bench potentials" in record["command"]
    assert "torch" in record["versions"] and record["missing"] == {}
    program = record["programs"]["tesseral@reference"]
    assert program["backend"] == "reference"
    assert program["threads"] == 1 and program["weights"] == "random" and program["parameters"] > 1e5
    molecule = record["systems"]["molecule"]
    assert molecule["atoms"] == 27 and molecule["edges"] == {"tesseral@reference": 440}
    times = {path: found["times"]["tesseral@reference"] for path, found in molecule["paths"].items()}
    assert set(times) == {"calculator", "model"}
    assert times["calculator"]["min"] > 0.3 * times["model"]["min"]  # nothing was answered from memory
    assert record["systems"]["training"]["atoms"] == 8 * 27
    assert set(record["systems"]["training"]["paths"]) == {"step"}
    for system in record["systems"].values():
        memory = system["memory"]["tesseral@reference"]
        assert memory["peak"] >= memory["before"] > 0
        for path, found in system["paths"].items():
            times = found["times"]["tesseral@reference"]
            assert 0 < times["min"] <= times["median"] <= times["max"]
            assert found["ratios"] == {}
            assert "list" in record["paths"][path] or path == "step"


def test_a_peer_is_timed_beside_us(tmp_path, fake, capsys, monkeypatch):
    monkeypatch.setattr(potentials, "ENOUGH", 0.0)
    fake()
    out = tmp_path / "side_by_side.json"
    words = ("--systems", "molecule", "--peer", f"fake={sys.executable}", "-o", str(out))
    record = bench(tmp_path, *words)
    assert json.loads(out.read_text()) == record
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    molecule = record["systems"]["molecule"]
    assert molecule["edges"]["fake"] == 8 * 27
    for found in molecule["paths"].values():
        times = found["times"]
        assert times["fake"]["median"] == pytest.approx(50, rel=0.2)
        quotient = times["fake"]["median"] / times["tesseral"]["median"]
        assert found["ratios"]["fake / tesseral"]["median"] == pytest.approx(quotient)
    assert "fake / tesseral" in capsys.readouterr().out
    assert main(["bench", "potentials", *words]) == 2
    assert "--force" in capsys.readouterr().err


def test_peers_that_fail_are_left_out(tmp_path, fake, capsys, monkeypatch):
    """No such Python, one without the peer's package, and a peer that fails when it is timed."""
    monkeypatch.setattr(potentials, "ENOUGH", 0.0)
    side = fake(fails=True)
    bare = tmp_path / "bare_side.py"
    bare.write_text(MACE_SIDE.read_text().replace("import mace ", "import absent_package "))
    for name, file in (("absent", side), ("bare", bare)):
        monkeypatch.setitem(potentials.PEERS, name, file)
    reasons = {
        "absent": "/nowhere/python cannot be run: No such file",
        "bare": "No module named 'absent_package'",
        "fake": "FloatingPointError: cannot calculator",
    }
    peers = ["absent=/nowhere/python", f"bare={sys.executable}", f"fake={sys.executable}"]
    record = bench(tmp_path, "--systems", "molecule", *(w for peer in peers for w in ("--peer", peer)))
    captured = capsys.readouterr()
    for name, reason in reasons.items():
        assert reason in record["missing"][name]
        assert f"peer {name} is left out" in captured.err and f"{name} was left out" in captured.out
    times = record["systems"]["molecule"]["paths"]["model"]["times"]
    assert set(times) == {"tesseral"} and times["tesseral"]["median"] > 0


def test_protocol_survives_errors_and_noise(fake):
    with Worker(peer_command(sys.executable, fake())) as worker:
        assert worker.ask("open", options=OPTIONS)["model"] == "Fake"
        system = SYSTEMS["molecule"]().as_dict()
        assert worker.ask("load", system=system, paths=["model"])["edges"] == 8 * 27
        with pytest.raises(WorkerError, match="cannot calculator"):
            worker.ask("time", path="calculator", calls=1)
        worker.ask("time", path="model", calls=1)
        reply = worker.ask("time", path="model", calls=2)
        assert reply["cpu"] == pytest.approx(0.05, rel=0.2) and reply["peak"] > 1e6


def test_a_dead_worker_leaves_its_last_words(tmp_path):
    side = tmp_path / "dying.py"
    side.write_text("import sys\nsys.exit('no licence found')\n")
    with (
        Worker(peer_command(sys.executable, side)) as worker,
        pytest.raises(WorkerError, match="no licence found"),
    ):
        worker.ask("open", options=OPTIONS)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--systems", "molecule,sand"], "sand"),
        (["--peer", "orb=python"], "mace"),
        (["--peer", "mace"], "NAME=PYTHON"),
        (["--models", "nonsense"], "nonsense"),
        (["--models", "random@abacus"], "there are reference"),
        (["--models", ""], "nothing to time"),
        (["--repeats", "0"], "at least 1"),
        (["--peer", "mace=a", "--peer", "mace=b"], "one name"),
    ],
)
def test_wrong_options_are_explained(words, text, capsys):
    assert main(["bench", "potentials", *words]) == 2
    assert text in capsys.readouterr().err


def test_models_run_only_where_they_know_the_elements(tmp_path, shipped, monkeypatch):
    monkeypatch.setattr(potentials, "ENOUGH", 0.0)
    plan = potentials.plan("tiny-solids", [], "molecule,training", 1, 0)
    record = potentials.bench(plan)
    assert all(found["times"] == {} for system in record["systems"].values() for found in system["paths"].values())


@pytest.mark.parametrize(("name", "n_atoms"), [("molecule", 27), ("si216", 216), ("cu500", 500), ("water192", 192)])
def test_systems_are_sound_and_fixed(name, n_atoms):
    system, again = SYSTEMS[name](), SYSTEMS[name]()
    assert np.array_equal(system.frames, again.frames)
    atoms = Atoms(system.numbers, system.frames[0], cell=system.cell, pbc=system.periodic)
    distances = atoms.get_all_distances(mic=system.periodic) + 10 * np.eye(len(atoms))
    assert len(atoms) == n_atoms and set(system.numbers) <= set(ELEMENTS)
    assert distances.min() > (0.9 if 1 in system.numbers else 2.0)
    if name == "water192":
        assert atoms.get_masses().sum() * 1.66054 / atoms.get_volume() == pytest.approx(0.997, rel=1e-3)
        hydrogen = distances[np.ix_(system.numbers == 8, system.numbers == 1)]
        assert np.sort(hydrogen, axis=1)[:, :2] == pytest.approx(0.9572, abs=1e-6)
        assert np.sort(hydrogen, axis=1)[:, 2].min() > 1.2


def test_help_shows_the_command(capsys):
    assert main(["bench", "potentials", "--help"]) == 0
    assert "tesseral bench potentials --peer mace=" in capsys.readouterr().out
