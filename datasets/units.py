"""One table of units, and `Units`: what a file is written in. Inside the package: eV, Å, eV/Å, eV/Å³, e.

Source: CODATA 2022 (e and N_A exact; Hartree and bohr to all published digits).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from .errors import DataError

if TYPE_CHECKING:
    from .structure import Structure

ELEMENTARY_CHARGE = 1.602176634e-19  # C
AVOGADRO = 6.02214076e23  # 1/mol
HARTREE = 27.211386245981  # eV
BOHR = 0.529177210544  # Å

ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "Ha": HARTREE,
    "mHa": HARTREE * 1e-3,
    "Ry": HARTREE / 2,
    "kcal/mol": 4184.0 / (AVOGADRO * ELEMENTARY_CHARGE),
    "kJ/mol": 1000.0 / (AVOGADRO * ELEMENTARY_CHARGE),
    "K": 1.380649e-23 / ELEMENTARY_CHARGE,
}
LENGTH = {"Å": 1.0, "bohr": BOHR, "nm": 10.0, "pm": 0.01}
GIGAPASCAL = 1e-21 / ELEMENTARY_CHARGE  # eV/Å³
PRESSURE = {"GPa": GIGAPASCAL, "kbar": 0.1 * GIGAPASCAL, "bar": 1e-4 * GIGAPASCAL, "Pa": 1e-9 * GIGAPASCAL}
DIPOLE = {"e·Å": 1.0, "Debye": 1e-21 / 299792458 / ELEMENTARY_CHARGE * 1e10, "e·bohr": BOHR}
ALIASES = {
    "hartree": "Ha",
    "hartrees": "Ha",
    "rydberg": "Ry",
    "electronvolt": "eV",
    "kcal": "kcal/mol",
    "kj": "kJ/mol",
    "a": "Å",
    "ang": "Å",
    "angstrom": "Å",
    "angstroms": "Å",
    "a0": "bohr",
    "d": "Debye",
    "e*å": "e·Å",
    "e*a": "e·Å",
    "e*bohr": "e·bohr",
}
VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


@dataclass(frozen=True)
class Units:
    """The units of a file; a field that is None takes the reader's own default (eV and Å for most formats).

    energy: "eV", "meV", "Ha", "Ry", "kcal/mol", "kJ/mol" … length: "Å", "bohr", "nm", "pm".
    forces: "energy/length" (default: from the two). stress: "GPa", "kbar", … or "energy/length^3".
    stress_sign: -1 where positive means compression (VASP); stress_order: order of six components.
    dipole: "e·Å", "Debye", "e·bohr".

    Raises:
        DataError: an unknown unit; the message lists the known ones.
    """

    energy: str | None = None
    length: str | None = None
    forces: str | None = None
    stress: str | None = None
    dipole: str | None = None
    stress_sign: int | None = None
    stress_order: str | None = None

    def __post_init__(self) -> None:
        self.factors()
        if self.stress_sign not in (None, 1, -1):
            raise DataError(f"units: stress_sign is {self.stress_sign}: write 1 (tension positive) or -1")
        if self.stress_order is not None:
            voigt_permutation(self.stress_order)

    @classmethod
    def parse(cls, text: str) -> Units:
        """From "energy=kcal/mol,length=bohr,stress=kbar,stress_sign=-1" (the form of the command line)."""
        known = [f.name for f in fields(cls)]
        values: dict[str, str | int] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = (part.strip() for part in item.partition("="))
            if key not in known or not value:
                raise DataError(f"units: cannot read {item!r}; write NAME=UNIT with NAME one of {', '.join(known)}")
            values[key] = _sign(value) if key == "stress_sign" else value
        return cls(**values)  # type: ignore[arg-type]

    def merged(self, defaults: Units) -> Units:
        """These units, with `defaults` where a field is None (given energy or length also decide forces)."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if ("energy" in own or "length" in own) and "forces" not in own:
            defaults = replace(defaults, forces=None)
        return replace(defaults, **own)

    def factors(self) -> dict[str, float]:
        """Factor to our unit for length and each label."""
        energy = _factor(self.energy or "eV", ENERGY, "energy")
        length = _factor(self.length or "Å", LENGTH, "length")
        factors = dict.fromkeys(("energy", "free_energy", "energies"), energy)
        factors["length"] = length
        factors["forces"] = _ratio(self.forces, 1, "forces") if self.forces else energy / length
        factors["stress"] = _ratio(self.stress, 3, "stress") if self.stress else energy / length**3
        factors["dipole"] = _factor(self.dipole or "e·Å", DIPOLE, "dipole")
        return factors

    @property
    def trivial(self) -> bool:
        """Whether nothing has to be converted."""
        plain = self.stress_sign in (None, 1) and self.stress_order is None
        return plain and all(factor == 1 for factor in self.factors().values())

    def convert(self, structure: Structure) -> None:
        """Bring a structure whose numbers are in these units to ours, in place."""
        factors = self.factors()
        if factors["length"] != 1:
            structure.positions *= factors["length"]
            structure.cell *= factors["length"]
        for key, value in structure.labels.items():
            if factors.get(key, 1.0) != 1:
                structure.labels[key] = np.asarray(value * factors[key])
        if "stress" in structure.labels:
            order = slice(None) if self.stress_order is None else voigt_permutation(self.stress_order)
            structure.labels["stress"] = structure.labels["stress"][order] * (self.stress_sign or 1)

    def describe(self) -> dict[str, str | int]:
        """The fields that are set, as plain JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def voigt_permutation(order: str) -> np.ndarray:
    """Indices `(6,)` that bring components written in `order` ("xx yy zz xy yz zx") to xx yy zz yz xz xy."""
    names = ["".join(sorted(name)) for name in order.replace(",", " ").split()]
    if sorted(names) != sorted(VOIGT):
        raise DataError(f"units: stress_order is {order!r}: name the six components, e.g. 'xx yy zz xy yz xz'")
    return np.array([names.index(name) for name in VOIGT])


def _sign(text: str) -> int:
    if text not in ("1", "+1", "-1"):
        raise DataError(f"units: stress_sign is {text!r}: write 1 (tension positive) or -1")
    return int(text)


def _factor(name: str, table: dict[str, float], kind: str) -> float:
    folded = {key.casefold(): value for key, value in table.items()}
    canonical = ALIASES.get(name.strip().casefold(), name.strip())
    factor = folded.get(canonical.casefold())
    if factor is None:
        raise DataError(f"units: unknown unit {name!r} of {kind}; known: {', '.join(table)}")
    return factor


def _ratio(text: str, power: int, kind: str) -> float:
    """Factor of "energy/length" (power 1) or a pressure or "energy/length^3" (power 3)."""
    if power == 3 and "/" not in text:
        return _factor(text, PRESSURE, kind)
    energy, _, length = text.replace("³", "^3").replace("**", "^").rpartition("/")
    base, _, exponent = length.partition("^")
    if not energy or int(exponent or 1) != power:
        raise DataError(f"units: cannot read {text!r} of {kind}; write ENERGY/LENGTH" + ("^3" if power == 3 else ""))
    return _factor(energy, ENERGY, kind) / _factor(base, LENGTH, kind) ** power


OURS = Units(energy="eV", length="Å", forces="eV/Å", stress="eV/Å^3", dipole="e·Å")
