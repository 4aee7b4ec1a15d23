"""The import contracts of pyproject.toml hold, and they catch what they are meant to catch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLANTED = {
    "kernels/planted.py": "import ase\n",
    "md/planted.py": "from ..training import checkpoint\n",
    "potentials/planted.py": "from ..models import something\n",
    "training/planted.py": "from ..potentials import load\n",
    "planted/__init__.py": "",
}


def lint(folder: Path) -> subprocess.CompletedProcess:
    """Run import-linter on the package that lies (as `tesseral`) in this folder."""
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed")
    return subprocess.run(
        [str(tool), "--no-cache"],
        cwd=folder / "tesseral",
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.fixture
def copy(repo_root, tmp_path) -> Path:
    """Folder with a copy of the package's modules, free to be spoiled."""
    keep = shutil.ignore_patterns(".*", "venv", "tests", "docs", "demo", "build", "weights", "__pycache__", "data")
    shutil.copytree(repo_root, tmp_path / "tesseral", ignore=keep)
    return tmp_path


def test_contracts_hold(copy):
    run = lint(copy)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("name", PLANTED)
def test_planted_violation_is_caught(copy, name):
    (copy / "tesseral" / name).parent.mkdir(exist_ok=True)
    (copy / "tesseral" / name).write_text(PLANTED[name])
    run = lint(copy)
    assert run.returncode != 0
    assert "planted" in run.stdout
