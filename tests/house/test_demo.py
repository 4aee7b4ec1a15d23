"""The tour's commands are commands that exist, on files that exist; its failure is ours, not the user's."""

from pathlib import Path

import pytest

from tesseral.scripts import demo
from tesseral.scripts import main as cli
from tesseral.scripts.main import _parse


def test_commands_parse_and_inputs_exist(repo_root):
    written: set[str] = set()
    for words in demo.tour(repo_root / "examples", Path("out"), 1.0).values():
        args = _parse(words)
        named = [w for w in words if w.startswith(str(repo_root))]
        assert all(Path(w).exists() for w in named)
        later = [w for w in words[1:3] if w.startswith("out/")]
        assert set(later) - {"out/training/best.safetensors"} <= written  # an input was an earlier output
        written |= {str(v) for k, v in vars(args).items() if k in ("output", "trajectory", "json")}


def test_what_a_step_prints_is_kept_and_shown(capsys):
    step = demo.execute(["info"])
    assert "kernel backends" in step.output and step.text.startswith("$ tesseral info\n")
    assert step.output in capsys.readouterr().out


def test_a_failing_step_stops_the_tour(tmp_path):
    with pytest.raises(RuntimeError, match=r"evaluate .* failed with exit code 2"):
        demo.execute(["evaluate", "no-such-model", str(tmp_path)])


def test_an_installed_package_says_where_examples_are(tmp_path, capsys):
    assert cli.main(["demo", "-o", str(tmp_path / "demo"), "--examples", str(tmp_path)]) == 2
    assert "--examples" in capsys.readouterr().err


def test_an_earlier_page_is_not_overwritten(repo_root, tmp_path, capsys):
    (tmp_path / "report.html").write_text("precious")
    assert cli.main(["demo", "-o", str(tmp_path), "--examples", str(repo_root / "examples")]) == 2
    assert "--force" in capsys.readouterr().err and (tmp_path / "report.html").read_text() == "precious"
