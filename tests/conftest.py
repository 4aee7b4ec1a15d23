"""What all tests share: the folder of real data, from the variable TESSERAL_DATA or `../shared/data`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which any test may cause: without a GPU, its kernels run interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TESSERAL_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("3bpa/train_300K.extxyz.gz")` is that path; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"no {name} under {DATA} (set TESSERAL_DATA)")
        return path

    return find


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Root of the source tree."""
    return ROOT
