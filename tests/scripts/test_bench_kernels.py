"""`tesseral bench kernels` at tiny sizes on plain torch: all cases, what is left out, and what is wrong."""

import json

import pytest
import torch

from tesseral.scripts.bench import kernel_cases, kernel_side, kernels
from tesseral.scripts.bench.kernel_cases import BACKWARD, DOUBLE, FORWARD, Case, Side
from tesseral.scripts.main import main

TINY = {"rows": 20, "channels": 2, "hidden": 3, "heads": 1}


@pytest.fixture
def tiny(monkeypatch):
    """One small case per operation, and workers that compile nothing."""
    cases = {
        name: [{key: TINY.get(key, value) for key, value in specs[0].items()}] for name, specs in kernels.CASES.items()
    }
    small = {**kernels.MESSAGE, "rows": 20, "lmax": 1, "source": "scalar", "channels": 2}
    cases["memory"] = [{**small, "neighbours": n} for n in (2, 8)]
    monkeypatch.setattr(kernels, "CASES", cases)
    monkeypatch.setenv("TESSERAL_BACKEND", "reference")


def test_all_cases_are_right_and_timed(tiny, tmp_path, capsys):
    out = tmp_path / "kernels.json"
    peers = [name for name in ("e3nn", "sphericart") if kernels.find_spec(name)]
    assert main(["bench", "kernels", "--repeats", "2", "-o", str(out)]) == 0
    record = json.loads(out.read_text())
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert list(record["peers"]) == peers and "cuequivariance" in record["missing"]
    assert record["settings"]["threads"] == 1 and "bench kernels" in record["command"]
    assert [case["spec"]["operation"] for case in record["cases"]] == [
        name for name in kernels.CASES if name != "memory"
    ]
    for case in record["cases"]:
        sides = case["sides"]
        assert sides["tesseral"]["orders"].keys() == sides["torch"]["orders"].keys() == case["ratios"].keys()
        for side in sides.values():
            for found in side["orders"].values():
                assert found["right"] and 0 <= found["error"] < 1e-4 and len(found["time"]["samples"]) == 2
        peer = {"grid": "torch", "harmonics": "sphericart"}.get(case["spec"]["operation"], "e3nn")
        if peer in (*peers, "torch"):
            ours, theirs = (sides[name]["orders"][BACKWARD]["time"]["samples"] for name in ("tesseral", peer))
            pairs = sorted(b / a for a, b in zip(ours, theirs, strict=True))
            assert case["ratios"][BACKWARD][peer]["median"] == pytest.approx(sum(pairs) / 2)
    for row in record["memory"]:
        assert row["allocated"] > 0 and row["edges"] == 20 * row["spec"]["neighbours"]
    text = capsys.readouterr().out
    assert "message scalar→all L=1" in text and "bytes per edge" in text and "aim" not in text
    assert main(["bench", "kernels", "-o", str(out)]) == 2


def test_peers_can_be_absent_or_unwanted(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(kernels.PEERS, "e3nn", "absent_package")
    plan = kernels.plan("gaunt", "e3nn", 1, 0)
    assert plan.missing["e3nn"] == "not installed" and plan.peers == []
    assert "peer e3nn is left out: not installed" in capsys.readouterr().err
    out = tmp_path / "record.json"
    words = ["--repeats", "1", "--cases", "gaunt", "--peers", "none", "--json", str(out)]
    assert main(["bench", "kernels", *words]) == 0
    record = json.loads(out.read_text())
    assert "e3nn" not in record["missing"] and set(record["cases"][0]["sides"]) == {"tesseral", "torch"}


def test_a_wrong_result_is_not_timed(monkeypatch):
    """Errors above the tolerance of their order, in ours and in a peer's results; a peer that raises is named."""

    def fail(x):
        raise MemoryError("too large")

    def case(*, rows):
        sides = [
            Side("tesseral", lambda x: x.sin() * (1 + 1e-4)),
            Side("good", torch.sin, peer=True),
            Side("bad", lambda x: x.sin() * torch.nan, peer=True),
            Side("broken", fail, peer=True),
        ]
        x = kernel_cases.normal(rows, 3)
        return Case([x], tuple(x.shape), torch.sin, sides, orders=(FORWARD, DOUBLE))

    monkeypatch.setitem(kernel_cases.BUILDERS, "sine", case)
    monkeypatch.setattr(kernel_side, "ENOUGH", 0.0)
    reply = kernel_side.timing({"operation": "sine", "rows": 5}, ["good", "bad", "broken"], 1, 0)
    assert reply["failed"] == {"broken": "MemoryError: too large"}
    timed = {name: "time" in side["orders"][FORWARD] for name, side in reply["sides"].items()}
    assert timed == {"tesseral": False, "good": True, "bad": False}
    assert 5e-5 < reply["sides"]["tesseral"]["orders"][FORWARD]["error"] < 1e-3
    record = {"cases": [{"name": "sine", "sides": reply["sides"]}]}
    assert "sine, forward" in kernels.wrong(record)[0]
    assert kernels._ratios(reply["sides"])[FORWARD] == {}


def test_tensors_alive_at_once_are_counted():
    def call():
        first = torch.ones(1000)
        second = first + 1
        del first
        return [second + 1]

    assert 8000 <= kernel_side.allocated(call) < 8100  # a few scalars besides


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--cases", "gaunt,sand"], "sand"),
        (["--cases", ""], "nothing to time"),
        (["--peers", "orb"], "e3nn"),
        (["--repeats", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_explained(words, text, capsys):
    assert main(["bench", "kernels", *words]) == 2
    assert text in capsys.readouterr().err


def test_help_shows_the_command(capsys):
    assert main(["bench", "kernels", "--help"]) == 0
    assert "tesseral bench kernels --cases" in capsys.readouterr().out
