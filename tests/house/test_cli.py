"""The command line's contract: exit codes, one-line errors, help with examples, JSON results."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from tesseral.datasets.errors import UserError
from tesseral.scripts import _cli
from tesseral.scripts import main as cli

SUBCOMMANDS = {"data": ["convert", "inspect", "check", "split"]}
PAGES = [[name, *sub] for name in cli.COMMANDS for sub in [[], *([s] for s in SUBCOMMANDS.get(name, []))]]


@pytest.fixture
def raising(monkeypatch):
    """`raising(error)` makes the command `info` raise that error."""

    def plant(error: BaseException) -> None:
        def run(args):
            raise error

        module = types.SimpleNamespace(add_arguments=lambda parser: None, run=run)
        monkeypatch.setattr(cli, "import_module", lambda name: module)

    return plant


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_page_has_an_example(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    assert "example" in page.lower()
    assert f"tesseral {' '.join(words)}" in page.split("xample", 1)[1]


def test_unknown_command_is_the_users_mistake(capsys):
    assert cli.main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_user_error_is_one_line_and_exit_2(raising, capsys):
    raising(UserError("run.xyz, frame 3: position of atom 2 is NaN; remove the frame"))
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == (
        "tesseral: error: run.xyz, frame 3: position of atom 2 is NaN; remove the frame\n"
    )


def test_missing_file_is_the_users_mistake(raising, capsys):
    raising(FileNotFoundError(2, "No such file or directory", "absent.xyz"))
    assert cli.main(["info"]) == 2
    assert "absent.xyz: No such file" in capsys.readouterr().err


def test_other_errors_are_our_fault_and_exit_1(raising, capsys):
    raising(ValueError("shape mismatch"))
    assert cli.main(["info"]) == 1
    error = capsys.readouterr().err
    assert "ValueError: shape mismatch" in error and "--debug" in error and "Traceback" not in error


def test_debug_gives_the_traceback_wherever_it_stands(raising):
    raising(UserError("wrong"))
    with pytest.raises(UserError, match="wrong"):
        cli.main(["info", "--debug"])
    with pytest.raises(UserError, match="wrong"):
        cli.main(["--debug", "info"])


def test_interrupt_says_that_work_is_kept(raising, capsys):
    raising(KeyboardInterrupt())
    assert cli.main(["info"]) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--help", "info"])
def test_closed_pipe_is_silent(words):
    line = f"{sys.executable} -m tesseral {words} | true"
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert run.stderr == ""


def test_info_lists_versions_devices_and_models(tmp_path, capsys):
    out = tmp_path / "info.json"
    assert cli.main(["info", "--json", str(out)]) == 0
    page = capsys.readouterr().out
    facts = json.loads(out.read_text())
    assert facts["versions"]["torch"] in page and "cpu" in facts["devices"]
    assert "reference" in facts["kernel_backends"]
    assert facts["command"] == f"tesseral info --json {out}"
    for name in facts["models"]:
        assert name in page


def test_json_takes_numpy_and_is_atomic(tmp_path):
    path = tmp_path / "a" / "r.json"
    _cli.write_json(path, {"mae": np.float64(1.5), "rows": np.arange(3), "file": path})
    assert json.loads(path.read_text())["rows"] == [0, 1, 2]
    with pytest.raises(TypeError, match="cannot write object"):
        _cli.write_json(path, {"bad": object()})
    assert json.loads(path.read_text())["mae"] == 1.5
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_existing_output_is_refused_without_force(tmp_path):
    path = tmp_path / "out.h5"
    _cli.refuse_overwrite(path, force=False)
    path.write_text("precious")
    with pytest.raises(UserError, match="--force"):
        _cli.refuse_overwrite(path, force=False)
    _cli.refuse_overwrite(path, force=True)


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_unusable_device_is_named(name):
    with pytest.raises(UserError, match=f"--device {name}.*usable here: cpu"):
        _cli.check_device(name)
