"""Importing the package and asking for help stay light; the rooms never answer to bare names."""

import importlib.util
import os
import subprocess
import sys

import pytest

import tesseral

HEAVY = ["torch", "numpy", "scipy", "ase", "h5py", "rdkit", "pymatgen", "lightning", "matplotlib", "numba"]
REPORT = f"import sys; print([m for m in {HEAVY} if m in sys.modules])"


def python(code: str, **options) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, **options)


def test_import_loads_nothing_heavy():
    assert python(f"import tesseral; {REPORT}").stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["nonsense"]])
def test_help_loads_nothing_heavy(words):
    run = python(f"from tesseral.scripts.main import main; main({words}); {REPORT}")
    assert run.stdout.strip().splitlines()[-1] == "[]"


def test_rooms_do_not_answer_to_bare_names(repo_root):
    """`import datasets` in the repository must find the library of that name or nothing, never our room."""
    code = "import importlib.util as u; print([s.origin for n in ('datasets', 'kernels', 'models') "
    code += "if (s := u.find_spec(n))])"
    run = python(code, cwd=repo_root, env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert str(repo_root) not in run.stdout
    spec = importlib.util.find_spec("datasets")
    assert spec is None or str(repo_root) not in str(spec.origin)


def test_public_names_are_listed_and_lazy():
    code = "import sys, tesseral; print(sorted(set(dir(tesseral)) - {'__version__'}))\n"
    code += "rooms = lambda: [r for r in ('datasets', 'md') if f'tesseral.{r}' in sys.modules]\n"
    code += "print(rooms()); tesseral.Structure; print(rooms())"
    lines = python(code).stdout.splitlines()
    assert lines == ["['Calculator', 'Structure', 'generate', 'load', 'read', 'relax']", "[]", "['datasets']"]


def test_every_public_name_resolves():
    for name in dir(tesseral):
        assert getattr(tesseral, name) is not None


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'tesseral' has no attribute 'nonsense'"):
        _ = tesseral.nonsense
