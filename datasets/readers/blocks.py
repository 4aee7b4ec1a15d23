"""Frames from arrays with one row per frame: how ANI, SPICE, rMD17, sGDML and others store a molecule."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..elements import symbols_to_numbers
from ..errors import DataError
from ..keys import KeyMap, Labeller
from ..structure import Structure
from ..units import Units

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Names and units that one community uses. `needs`: names (lower case) that must all be there."""

    name: str
    positions: str
    numbers: str
    needs: tuple[str, ...] = ()
    keys: KeyMap = field(default_factory=KeyMap)
    units: Units = field(default_factory=Units)


KCAL = Units(energy="kcal/mol", length="Å")
LAYOUTS = (
    Layout("SPICE", "conformations", "atomic_numbers", ("dft_total_energy",),
           KeyMap(energy="dft_total_energy", forces="-dft_total_gradient", dipole="scf_dipole"),
           Units(energy="Ha", length="bohr", dipole="e·bohr")),
    Layout("ANI-1x", "coordinates", "atomic_numbers", ("wb97x_dz.energy",),
           KeyMap(energy="wb97x_dz.energy", forces="wb97x_dz.forces", dipole="wb97x_dz.dipole"),
           Units(energy="Ha", length="Å", dipole="e·Å")),
    Layout("ANI-1", "coordinates", "species", ("energies",), KeyMap(energy="energies"), Units("Ha", "Å")),
    Layout("rMD17", "coords", "nuclear_charges", ("energies",), KeyMap(energy="energies", forces="forces"), KCAL),
    Layout("sGDML", "r", "z", ("e",), KeyMap(energy="e", forces="f"), KCAL),
    Layout("arrays", "positions", "numbers"),
    Layout("arrays", "positions", "atomic_numbers"),
    Layout("arrays", "coordinates", "atomic_numbers"),
)  # fmt: skip
FRAME_NAMES = re.compile("cell|lattice|pbc|dipole|stress|virial")
CHARGED_ATOM = re.compile(r"\[[^\]]*?([+-]+)(\d*)(?::\d+)?\]")


def find_layout(names: Iterable[str], inherited: Iterable[str] = ()) -> Layout | None:
    """The layout that fits these names (atomic numbers may also stand in an outer group)."""
    here = {name.casefold() for name in names}
    outside = here | {name.casefold() for name in inherited}
    for layout in LAYOUTS:
        if layout.positions in here and layout.numbers in outside and here.issuperset(layout.needs):
            return layout
    return None


def frames(
    arrays: Mapping[str, Any], layout: Layout, labeller: Labeller, where: str, first: int = 0
) -> Iterator[Structure]:
    """The labelled frames of one block; `arrays` maps names to arrays (as they lie in the file, rows are frames).

    Raises:
        DataError: shapes that do not fit together, with the place and the name.
    """
    folded = {name.casefold(): name for name in arrays}
    names = {name: name.casefold() for name in arrays}
    positions = np.asarray(arrays[folded[layout.positions]], dtype=np.float64)
    if positions.ndim == 2:
        positions = positions[None]
    if positions.ndim != 3 or positions.shape[-1] != 3:
        raise DataError(f"{layout.positions!r} has shape {positions.shape}, expected (frames, atoms, 3)", where)
    count, n_atoms = positions.shape[:2]
    numbers = _numbers(arrays[folded[layout.numbers]], where)
    if numbers.shape not in ((n_atoms,), (count, n_atoms)):
        raise DataError(f"{layout.numbers!r} has shape {numbers.shape}, positions {positions.shape}", where)
    used = {layout.positions, layout.numbers}
    rest = {name: np.asarray(value) for name, value in arrays.items() if names[name] not in used}
    constant, per_frame, per_atom = _sort(rest, count, n_atoms, where)
    smiles = constant.get("smiles")
    for i in range(count):
        row = numbers[i] if numbers.ndim == 2 else numbers
        real = row > 0  # frames of different size are padded with atomic number 0
        frame = Structure(
            row[real],
            positions[i][real],
            arrays={name: value[i][real] for name, value in per_atom.items() if not _absent(value[i])},
            info={**constant, **{k: _item(v[i]) for k, v in per_frame.items() if not _absent(v[i])}},
        )
        for name in ("cell", "lattice"):
            if name in frame.info:
                frame.cell = np.asarray(frame.info.pop(name), dtype=np.float64).reshape(3, 3)
                frame.pbc = np.broadcast_to(np.asarray(frame.info.pop("pbc", True), dtype=bool), 3).copy()
        if isinstance(smiles, str):
            frame.charge = float(formal_charge(smiles))
        place = f"{where}, frame {first + i}"
        yield labeller(frame, place)


def formal_charge(smiles: str) -> int:
    """Sum of the formal charges written in a SMILES string."""
    total = 0
    for signs, digits in CHARGED_ATOM.findall(smiles):
        total += (1 if signs[0] == "+" else -1) * (int(digits) if digits else len(signs))
    return total


def _numbers(value: Any, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind in "SOU":
        text = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]
        return symbols_to_numbers(text, where).reshape(array.shape)
    return array.astype(np.int64)


def _sort(
    arrays: Mapping[str, np.ndarray], count: int, n_atoms: int, where: str
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays by what a row is: (the same for all frames, one per frame, one per atom of a frame)."""
    constant: dict[str, Any] = {}
    per_frame: dict[str, np.ndarray] = {}
    per_atom: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        frame_like = FRAME_NAMES.search(name.casefold()) is not None  # a dipole of three atoms is no atomic property
        if (
            not frame_like
            and value.ndim >= 2
            and value.shape[:2] == (count, n_atoms)
            and value.shape[2:] in ((), (1,), (3,))
        ):
            per_atom[name] = value[..., 0] if value.shape[2:] == (1,) else value
        elif value.ndim >= 1 and len(value) == count and value.size <= 9 * count:
            per_frame[name] = value[:, 0] if value.shape[1:] == (1,) else value
        elif value.size == 1:
            constant[name] = _item(value.reshape(())[()])
        else:
            log.warning("%s: %r of shape %s is left out (neither per frame nor per atom)", where, name, value.shape)
    return constant, per_frame, per_atom


def _item(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.item() if isinstance(value, np.generic) else value


def _absent(value: Any) -> bool:
    """NaN throughout: how such files mark what was not computed."""
    array = np.asarray(value)
    return array.dtype.kind == "f" and array.size > 0 and bool(np.isnan(array).all())
