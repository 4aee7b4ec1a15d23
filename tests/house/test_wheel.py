"""The wheel, built from the committed tree, holds every module and the weights, and nothing else."""

import subprocess
import sys
import zipfile

import pytest


def git(root, *words: str) -> str:
    """Output of one git command."""
    return subprocess.run(["git", *words], cwd=root, text=True, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def tracked(repo_root) -> list[str]:
    """Committed files."""
    if not (repo_root / ".git").exists():
        pytest.skip("the tests run from an unpacked archive: no commit to build from")
    return git(repo_root, "ls-tree", "-r", "--name-only", "HEAD").split("\n")[:-1]


@pytest.fixture(scope="module")
def wheel(repo_root, tracked, tmp_path_factory) -> list[str]:
    """File names inside the wheel."""
    pytest.importorskip("build", reason="the package `build` is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    git(repo_root, "clone", "-q", "--local", str(repo_root), str(folder / "clone"))
    build = [sys.executable, "-m", "build", "--no-isolation", "-o", str(folder), str(folder / "clone")]
    run = subprocess.run(build, text=True, capture_output=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return archive.namelist()


def test_wheel_holds_every_module(wheel, tracked):
    outside = ("tests/", "benchmarks/", "docs/", "examples/", ".")
    modules = {f for f in tracked if f.endswith(".py") and not f.startswith(outside)} - {"setup.py"}
    packed = {f.removeprefix("tesseral/") for f in wheel if f.endswith(".py")}
    assert packed == modules


def test_wheel_holds_types_and_weights(wheel, tracked):
    assert "tesseral/py.typed" in wheel
    for weights in (f for f in tracked if "/weights/" in f):
        assert f"tesseral/{weights}" in wheel


def test_wheel_holds_nothing_else(wheel):
    other = [f for f in wheel if not f.startswith("tesseral/") and ".dist-info/" not in f]
    assert other == []
    assert not any("/tests/" in f or f.endswith("setup.py") for f in wheel)


def test_shipped_models_are_small(repo_root, tracked):
    for name in tracked:
        if name.endswith(".safetensors"):
            assert (repo_root / name).stat().st_size < 7e6, name
