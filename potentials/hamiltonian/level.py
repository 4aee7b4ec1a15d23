"""Level of theory of a set of Hamiltonians: what must agree before two files, or a file and a model, go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...datasets.errors import UserError

# Components (libxc numbers) of the functionals that foreign files name. "B3LYP" has two meanings: since PySCF 2.3 the
# Gaussian form (VWN fitted to the RPA), before it the form with VWN5, spelled b3lyp5 now.
RESOLVED = {
    "pbe": "1 xc:101 + 1 xc:130",
    "b3lyp": "1 xc:402",
    "b3lypg": "1 xc:402",
    "b3lyp5": "0.2 HF + 0.08 xc:1 + 0.19 xc:7 + 0.72 xc:106 + 0.81 xc:131",
}


@dataclass(frozen=True)
class Level:
    """Restricted Kohn-Sham of neutral closed-shell molecules."""

    functional: str
    """Name for PySCF."""
    resolved: str
    """What the name meant when the labels were made: weights of exact exchange and of libxc's components."""
    basis: str
    grid_level: int
    code: str = ""
    """Program and version."""
    charge: int = 0
    spin: int = 0
    """Number of unpaired electrons."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "functional", self.functional.lower())
        object.__setattr__(self, "basis", self.basis.lower())

    def header(self) -> dict[str, Any]:
        """Plain form for files and checkpoints."""
        return asdict(self)

    @classmethod
    def from_header(cls, header: Mapping[str, Any], where: str = "") -> Level:
        """Inverse of `header`.

        Raises:
            UserError: an entry is missing.
        """
        needed = ("functional", "resolved", "basis", "grid_level")
        missing = [name for name in needed if name not in header]
        if missing:
            raise UserError(f"{where}: the level of theory does not name {', '.join(missing)}")
        return cls(**{name: header[name] for name in cls.__dataclass_fields__ if name in header})

    def __str__(self) -> str:
        return f"{self.functional} [{self.resolved}]/{self.basis}, grid level {self.grid_level}"

    def require_same(self, other: Level, where: str, other_where: str) -> None:
        """Check that matrices of both levels may be used together; program versions may differ.

        Raises:
            UserError: functional, basis, grid, charge or spin differ; both sides are named.
        """
        compared = ("resolved", "basis", "grid_level", "charge", "spin")
        if all(getattr(self, name) == getattr(other, name) for name in compared):
            return
        hint = ""
        if {self.resolved, other.resolved} == {RESOLVED["b3lyp"], RESOLVED["b3lyp5"]}:
            hint = " (the two forms of B3LYP differ by up to 4 mEh per element)"
        raise UserError(
            f"different levels of theory{hint}: {where} is {self}; {other_where} is {other}: keep them apart"
        )
