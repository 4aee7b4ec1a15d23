"""Work in other processes: order, time limits, crashes; PoseBusters and GFN2-xTB on top of it."""

import numpy as np
import pytest

from tesseral.generative.workers import Failed, apart

SHELL = "subprocess:getoutput"


def test_answers_come_in_order_whatever_takes_long():
    items = [{"cmd": f"sleep {0.3 if k == 0 else 0}; echo {k}"} for k in range(6)]
    assert list(apart(SHELL, items, processes=2)) == [str(k) for k in range(6)]
    assert list(apart(SHELL, [])) == []


def test_one_that_hangs_is_ended_and_the_rest_goes_on():
    items = [{"cmd": "echo a"}, {"cmd": "exec sleep 60"}, {"cmd": "echo b"}]
    first, second, third = apart(SHELL, items, processes=1, timeout=2.0)
    assert (first, third) == ("a", "b")
    assert second == Failed("no answer within 2 s")


def test_errors_and_crashes_have_reasons():
    (wrong,) = apart(SHELL, [{"command": "echo"}])
    assert isinstance(wrong, Failed)
    assert wrong.reason.startswith("TypeError")
    crashed = list(apart("os:abort", [{}, {}], processes=1))
    assert all(answer.reason.startswith("crashed, code -6") for answer in crashed)
    (absent,) = apart("tesseral.no_such:thing", [{}])
    assert "No module named" in absent.reason


def test_stopping_early_leaves_no_process():
    answers = apart(SHELL, [{"cmd": "echo a"}, {"cmd": "exec sleep 60"}], processes=1, timeout=50.0)
    assert next(answers) == "a"
    answers.close()  # would wait for the sleeper if it were not ended


def test_posebusters_names_what_is_wrong(small):
    pytest.importorskip("posebusters", reason="pip install 'tesseral[evaluation]'")
    from tesseral.generative.plausibility import bust, summary

    good, other = small.structures(("CC(=O)OC", "c1ccccc1C"))
    broken = other.copy()
    broken.positions[0] += 0.8
    results = bust([good, broken], implicit_hydrogens=True, processes=1)
    assert results[0] == []
    assert {"bond_lengths", "bond_angles"} & set(results[1])
    report = summary(results, n_generated=4)
    assert (report["pass"], report["pass_of_checked"], report["n_checked"]) == (0.25, 0.5, 2)
    assert set(report["failed"]) == set(results[1])


def test_gfn2_strain_is_that_of_the_heavy_atoms(small):
    pytest.importorskip("tblite", reason="pip install 'tesseral[evaluation]'")
    from tesseral.generative.strain import relaxed_by_gfn2, summary

    (ethanol,) = small.structures(("CCO",))
    (minimum,) = relaxed_by_gfn2([ethanol], implicit_hydrogens=True)
    assert minimum.converged
    assert minimum.structure.n_atoms == 9
    bare = minimum.structure.copy()
    keep = bare.numbers > 1
    bare = type(bare)(bare.numbers[keep], bare.positions[keep], bonds=[[0, 1, 1], [1, 2, 1]])
    stretched = bare.copy()
    stretched.positions[2] += 0.1 * (bare.positions[2] - bare.positions[1])
    again, strained = relaxed_by_gfn2([bare, stretched], implicit_hydrogens=True, processes=1)
    assert abs(again.drop) < 0.3  # the hydrogens are new: they cost nothing
    assert strained.drop > 3
    assert strained.bond > 0.01
    report = summary([again, strained], 0, "gfn2")
    assert report["energy_drop"]["unit"] == "kcal/mol"
    assert report["angle"]["mean"] > 0
    assert np.isfinite(report["rmsd"]["median"])
