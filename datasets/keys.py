"""Which keys of a file hold the labels: named by the user (`KeyMap`) or guessed, and the guess is said once.

Files name their labels freely: energy, Energy, REF_energy, dft_energy, E_lj; forces, force, F_lj; stress with
6, 9 or 3x3 components, or virial (stress = -virial / volume). Guessing never chooses between two values.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from .errors import DataError
from .structure import LABELS, Structure
from .units import VOIGT, Units

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyMap:
    """Names of the labels in a file; None = guess, "" = leave it out.

    `group` names the key that becomes `info["config_type"]`. A leading "-" turns the sign: "-gradient".
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    dipole: str | None = None
    charges: str | None = None
    magmoms: str | None = None
    charge: str | None = None
    spin: str | None = None
    group: str | None = None

    def of(self, label: str) -> str | None:
        """The name given for `label`, or None."""
        return getattr(self, label, None)

    @classmethod
    def parse(cls, text: str) -> KeyMap:
        """From "energy=REF_energy,forces=REF_forces" (the form of the command line)."""
        known = [f.name for f in fields(cls)]
        values: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in known or not equals:
                raise DataError(f"keys: cannot read {item!r}; write LABEL=NAME, LABEL one of {', '.join(known)}")
            values[key] = value
        return cls(**values)

    def overlaid(self, other: KeyMap) -> KeyMap:
        """These names, replaced where `other` gives one."""
        return replace(self, **other.describe())

    def describe(self) -> dict[str, str]:
        """The fields that are set, as plain JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


# First the names that mean the label beyond doubt, then (REFERENCE) names that say where the value came from.
PLAIN = {
    "energy": ("energy", "total_energy", "energy_total", "tot_energy", "etot", "e_tot", "toten", "e"),
    "free_energy": ("free_energy",),
    "energies": ("energies",),
    "forces": ("forces", "force", "total_forces", "f"),
    "stress": ("stress",),
    "virial": ("virial", "virials"),
    "dipole": ("dipole", "dipoles", "dipole_moment"),
    "charges": ("charges",),
    "magmom": ("magmom",),
    "magmoms": ("magmoms",),
    "charge": ("charge", "total_charge", "net_charge", "charge_total"),
    "spin": ("spin", "multiplicity", "spin_multiplicity", "total_spin"),
}
STEMS = {
    "energy": "energ(?:y|ies)",
    "forces": "forces?",
    "stress": "stress",
    "virial": "virials?",
    "dipole": "dipole",
}
LETTERS = {"energy": "e", "forces": "f", "virial": "v", "stress": "s"}
LEVELS = {"ref", "reference", "dft", "qm", "target", "label", "true"}


def candidates(label: str, usable: Iterable[str], present: Iterable[str]) -> list[str]:
    """The `usable` keys that may hold `label`: plain names, then those with a level (REF_, dft_)."""
    usable, present = list(usable), list(present)
    plain = [key for name in PLAIN[label] for key in usable if key.casefold() == name]
    return plain + [key for key in usable if key not in plain and _has_level(label, key, present)]


def _has_level(label: str, key: str, present: Iterable[str]) -> bool:
    level = _level_of(label, key)
    if level is None:
        return False
    # An unknown level (E_lj, xtb_energy) counts only in company: homo_energy has no homo_forces.
    others = [other for other in ("energy", "forces") if other != label]
    return level in LEVELS or any(_level_of(other, name) == level for other in others for name in present)


def _level_of(label: str, key: str) -> str | None:
    if label not in STEMS:
        return None
    name, stem = key.casefold(), STEMS[label]
    patterns = [rf"(\w+?)_{stem}", rf"{stem}_(\w+)"]
    if label in LETTERS:
        patterns.append(rf"{LETTERS[label]}_(\w+)")
    for pattern in patterns:
        match = re.fullmatch(pattern, name)
        if match:
            return match.group(1)
    return None


class Labeller:
    """Turns raw frames of one file (values in `info` and `arrays`) into labelled ones in our units.

    keys: names given by the user; units: of the file; source: its name, for messages.
    `chosen` tells which key became which label.
    """

    def __init__(self, keys: KeyMap | None = None, units: Units | None = None, source: str = "") -> None:
        self.keys = self._named = keys or KeyMap()
        self.units = units or Units()
        self.source = source
        self.chosen: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        self._plans: dict[tuple[frozenset[str], frozenset[str]], dict[str, str]] = {}
        self._native = self.units.trivial

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}

    def __call__(self, frame: Structure, where: str = "") -> Structure:
        """Move the labels of `frame` to their place and convert them, in place.

        Raises:
            DataError: a named key is absent or has an unusable value; two keys could be the same label.
        """
        for label, key in self._plan(frame, where).items():
            _assign(frame, label, key, where)
        if not self._native:
            self.units.convert(frame)
        return frame

    def adopt(self, keys: KeyMap, units: Units, layout: str) -> None:
        """Take the names and units of a known layout wherever the user gave none, and say so."""
        self.keys = keys.overlaid(self.keys)
        self.units = self.units.merged(units)
        self._native = self.units.trivial
        said = ", ".join(f"{name} {unit}" for name, unit in self.units.describe().items())
        if said:
            log.warning("%s: %s layout, %s (name units for others)", self.source, layout, said)

    def check_found(self, seen: set[str], labels: set[str]) -> None:
        """After a whole file: refuse a key that the user named and that no frame had.

        Raises:
            DataError: names the key and its nearest matches among `seen`.
        """
        for field in fields(self._named):
            key = (getattr(self._named, field.name) or "").lstrip("-")
            if key and field.name not in self.chosen and field.name not in labels:
                near = get_close_matches(key, seen, n=3) or sorted(seen)
                raise DataError(
                    f"no frame has the key {key!r} (for {field.name}); present: {', '.join(near) or 'none'}",
                    self.source,
                )

    def _plan(self, frame: Structure, where: str) -> dict[str, str]:
        signature = (frozenset(frame.info), frozenset(frame.arrays))
        plan = self._plans.get(signature)
        if plan is None:
            plan, certain = self._choose(frame, where)
            if certain:
                self._plans[signature] = plan
        return plan

    def _choose(self, frame: Structure, where: str) -> tuple[dict[str, str], bool]:
        """Label -> key for this frame; not certain where it rests on two values being equal in this frame."""
        present = {**frame.info, **frame.arrays}
        plan: dict[str, str] = {}
        certain = True
        for label in PLAIN:
            named = self.keys.of(label)
            if named is not None:
                key = _existing(named, present)
                if key:
                    plan[label] = key
                continue
            has_stress = self.keys.stress is not None or "stress" in plan or "stress" in frame.labels
            if label == "virial" and has_stress:
                continue
            found = candidates(label, [key for key in present if _usable(label, key, frame)], present)
            values = [present[key] for key in found]
            names = [f"info {key!r}" if key in frame.info else f"array {key!r}" for key in found]
            if label in frame.labels:  # a calculator's result, beside which info may hold REF_energy
                values, names = [frame.labels[label], *values], ["the calculator", *names]
            if len(values) > 1:
                certain = False
                self._refuse_different(label, names, values, found[-1], where)
            if found and label not in frame.labels:
                plan[label] = found[0]
        if self.keys.group:
            plan["group"] = self.keys.group
        self._tell(plan)
        return plan, certain

    def _refuse_different(self, label: str, names: list[str], values: list[Any], last: str, where: str) -> None:
        first = _flat(label, values[0])
        for value in values[1:]:
            other = _flat(label, value)
            same = first.shape == other.shape and np.allclose(first, other, rtol=1e-9, atol=1e-9, equal_nan=True)
            if not same:
                raise DataError(
                    f"{label} is ambiguous: {' and '.join(names)} hold different values; "
                    f"name one (keys: {label}={last})",
                    where or self.source,
                )

    def _tell(self, plan: dict[str, str]) -> None:
        news = {(label, key) for label, key in plan.items()} - self._told
        self._told |= news
        self.chosen.update(plan)
        guessed = [f"{key!r} as {label}" for label, key in sorted(news) if key != label and not self.keys.of(label)]
        if guessed:
            log.warning("%s: reading %s (name keys to choose others)", self.source or "frame", ", ".join(guessed))


def _flat(label: str, value: Any) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    return to_voigt(array) if label in ("stress", "virial") else array.ravel()


def _existing(named: str, present: Iterable[str]) -> str:
    """The key that the user (or a layout) means, with its sign; "" if it is not there; case counts last."""
    sign, name = ("-", named[1:]) if named.startswith("-") else ("", named)
    keys = list(present)
    if name in keys:
        return sign + name
    return next((sign + key for key in keys if key.casefold() == name.casefold()), "") if name else ""


def _usable(label: str, key: str, frame: Structure) -> bool:
    """Whether the value under `key` has a shape and type that `label` can have."""
    value = frame.arrays.get(key, frame.info.get(key))
    per_atom = label in LABELS and LABELS[label].per_atom
    if per_atom != (key in frame.arrays):
        return False
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            return False
    except (TypeError, ValueError):
        return False
    if per_atom:
        return array.size == frame.n_atoms * max(1, int(np.prod(LABELS[label].shape)))
    sizes = {"stress": (6, 9), "virial": (6, 9), "dipole": (3,)}
    return array.size in sizes.get(label, (1,))


def _assign(frame: Structure, label: str, named: str, where: str) -> None:
    sign, key = (-1.0, named[1:]) if named.startswith("-") else (1.0, named)
    store = frame.arrays if key in frame.arrays else frame.info
    if key not in store:
        return
    if label == "group":
        frame.info["config_type"] = store[key]
        return
    value = np.asarray(_numbers(store[key], label, key, where) * sign)  # a 0-d product is a scalar
    if label == "charge":
        frame.charge = float(value.reshape(-1)[0])
    elif label == "spin":
        multiplicity = round(float(value.reshape(-1)[0]))
        frame.spin = multiplicity or None  # 0 stands for "not given" in files of periodic systems
    elif label in ("stress", "virial"):
        frame.labels["stress"] = _stress(frame, label, value, key, where)
    else:
        spec = LABELS[label]
        shape = (frame.n_atoms, *spec.shape) if spec.per_atom else spec.shape
        if value.size != int(np.prod(shape)):
            raise DataError(f"key {key!r} has shape {value.shape}, {label} needs {shape}", where)
        frame.labels[label] = value.reshape(shape)
    del store[key]


def _numbers(value: Any, label: str, key: str, where: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"key {key!r} does not hold numbers, it cannot be {label}: {value!r:.60}", where) from None


def _stress(frame: Structure, label: str, value: np.ndarray, key: str, where: str) -> np.ndarray:
    voigt = to_voigt(value, f"{where}: key {key!r}" if where else f"key {key!r}")
    if label == "stress":
        return voigt
    if frame.volume == 0:
        raise DataError(f"key {key!r} is a virial, but the frame has no cell to divide by; leave it out", where)
    return -voigt / frame.volume


def to_voigt(value: np.ndarray, where: str = "") -> np.ndarray:
    """Stress `(6,)` in the order xx yy zz yz xz xy of 6 components, 9 or 3x3 (which must be symmetric).

    Raises:
        DataError: another size, or a matrix that is not symmetric.
    """
    if value.size == 6:
        return value.reshape(6)
    if value.size != 9:
        raise DataError(f"a stress has 6 or 9 components, this has shape {value.shape}", where)
    matrix = value.reshape(3, 3)
    tolerance = 1e-2 * max(1e-2, float(np.abs(matrix).max()))
    if not np.allclose(matrix, matrix.T, rtol=0, atol=tolerance, equal_nan=True):
        raise DataError(f"the 3x3 stress is not symmetric: {matrix.tolist()}; mend the file or leave it out", where)
    matrix = (matrix + matrix.T) / 2
    axes = ["xyz".index(name[0]) for name in VOIGT], ["xyz".index(name[1]) for name in VOIGT]
    return matrix[axes]
