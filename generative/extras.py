"""Optional packages of the extra `evaluation`: said to be missing before work is done, not after."""

from __future__ import annotations

from importlib.util import find_spec

from ..datasets.errors import UserError

PACKAGES = {"FCD": "fcd_torch", "PoseBusters": "posebusters", "GFN2-xTB": "tblite"}


def require(purpose: str) -> None:
    """Raise UserError if the package for a purpose of :data:`PACKAGES` is not installed."""
    package = PACKAGES[purpose]
    if find_spec(package) is None:
        raise UserError(f"{purpose} needs the package {package}: pip install 'tesseral[evaluation]'")
