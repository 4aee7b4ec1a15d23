"""HDF5: our store, and the layouts of others (ANI, SPICE, MACE, plain arrays), told apart by the names inside.

A group may be chosen after the file name, "ethanol.h5::split_01/train"; without one all blocks are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import DataError
from ..h5file import damaged, open_hdf5
from ..keys import KeyMap, Labeller
from ..structure import Structure
from ..units import Units
from . import blocks

MACE_GROUP = "config_batch_"
MISSING = "None"  # how MACE writes an absent value
# Attributes named "units" of SPICE's data sets, in their own spelling.
UNIT_NAMES = {"conformations": "length", "dft_total_energy": "energy", "dft_total_gradient": "forces"}


def read(path: Path, labeller: Labeller, group: str = "") -> Iterator[Structure]:
    """The labelled frames of a file, or of one group in it.

    Raises:
        DataError: unknown layout (the message lists what is inside), no such group, damaged or truncated file.
    """
    from ..store import Store, is_store

    if not group and is_store(path):
        if labeller.units != Units():
            raise DataError("a tesseral store is in eV and Å by construction; leave the units out", str(path))
        store = Store(path)
        for number, frame in enumerate(store):
            yield labeller(frame, store.where(number)) if labeller.keys != KeyMap() else frame
        return
    with open_hdf5(path) as file:
        root = _group(file, group, path)
        if any(name.startswith(MACE_GROUP) for name in root):
            yield from _mace(root, labeller)
            return
        first, found = 0, False
        for block, layout in _blocks(root):
            if not found:
                labeller.adopt(layout.keys, _declared_units(block).merged(layout.units), layout.name)
                found = True
            where = f"{labeller.source}, group {block.name}"
            for frame in blocks.frames(_load(block, layout, path), layout, labeller, where, first):
                first += 1
                if block != root:
                    frame.info.setdefault("group", block.name.strip("/"))
                yield frame
        if not found:
            inside = ", ".join(sorted(root)[:8]) or "nothing"
            raise DataError(f"no known layout (ANI, SPICE, MACE, arrays, tesseral store); inside: {inside}", str(path))


def _group(file: h5py.File, name: str, path: Path) -> h5py.Group:
    if not name:
        return file
    if name not in file or not isinstance(file[name], h5py.Group):
        groups: list[str] = []
        file.visititems(lambda key, item: groups.append(key) if isinstance(item, h5py.Group) else None)
        raise DataError(f"no group {name!r}; groups: {', '.join(groups[:12]) or 'none'}", str(path))
    return file[name]


def _datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    return {name: item for name, item in group.items() if isinstance(item, h5py.Dataset)}


def _outer(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Data sets of the groups around this one (atomic numbers that all splits share)."""
    found: dict[str, h5py.Dataset] = {}
    while group.name != "/":
        group = group.parent
        found = {**_datasets(group), **found}
    return found


def _blocks(root: h5py.Group) -> Iterator[tuple[h5py.Group, blocks.Layout]]:
    """Groups that hold one molecule each, depth first in the order of their names."""
    layout = blocks.find_layout(set(_datasets(root)), set(_outer(root)))
    if layout is not None:
        yield root, layout
        return
    for item in root.values():
        if isinstance(item, h5py.Group):
            yield from _blocks(item)


def _load(group: h5py.Group, layout: blocks.Layout, path: Path) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, dataset in _datasets(group).items():
        try:
            arrays[name] = dataset[()]
        except OSError as error:
            raise damaged(path, dataset.name, error) from None
    if layout.numbers not in {name.casefold() for name in arrays}:
        outer = {name.casefold(): dataset for name, dataset in _outer(group).items()}
        arrays[layout.numbers] = outer[layout.numbers][()]
    return {name: _text(value) for name, value in arrays.items()}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return np.array([item.decode() if isinstance(item, bytes) else str(item) for item in value.ravel()])
    return value


def _declared_units(group: h5py.Group) -> Units:
    """The units that SPICE's data sets declare as attributes; none for other layouts."""
    declared = {}
    for name, kind in UNIT_NAMES.items():
        unit = group[name].attrs.get("units") if name in group else None
        if unit is not None:
            declared[kind] = unit.decode() if isinstance(unit, bytes) else str(unit)
    return Units(energy=declared.get("energy"), length=declared.get("length"), forces=declared.get("forces"))


def _mace(root: h5py.Group, labeller: Labeller) -> Iterator[Structure]:
    """MACE's preprocessed files: config_batch_I/config_J with one frame each, in eV and Å."""
    number = 0
    for batch in sorted((name for name in root if name.startswith(MACE_GROUP)), key=_trailing_number):
        for name in sorted(root[batch], key=_trailing_number):
            where = f"{labeller.source}, group {batch}/{name}"
            yield labeller(_mace_frame(root[batch][name], where), where)
            number += 1


def _mace_frame(group: h5py.Group, where: str) -> Structure:
    values = {key: _value(item) for key, item in _datasets(group).items()}
    if values.get("atomic_numbers") is None or values.get("positions") is None:
        raise DataError("no atomic_numbers and positions; is this a MACE file of configurations?", where)
    weights = {key: _value(item) for key, item in group.get("property_weights", {}).items()}
    for key, item in group.get("properties", {}).items():
        # A weight of zero marks a value that MACE filled in itself.
        if np.any(np.asarray(weights.get(key, 1.0)) != 0):
            values[key] = _value(item)
    values = {k: v for k, v in values.items() if v is not None and not k.endswith("_weight") and k != "weight"}
    numbers, positions = values.pop("atomic_numbers"), values.pop("positions")
    n_atoms = len(numbers)
    cell, pbc = values.pop("cell", np.zeros((3, 3))), values.pop("pbc", False)
    per_atom = {k: v for k, v in values.items() if np.shape(v)[:1] == (n_atoms,) and (n_atoms != 3 or k in PER_ATOM)}
    info = {k: v for k, v in values.items() if k not in per_atom}
    return Structure(numbers, positions, cell, pbc, arrays=per_atom, info=info)


PER_ATOM = ("forces", "charges", "magmoms", "magmom")  # where three atoms leave doubt (dipole, stress)


def _value(dataset: h5py.Dataset) -> Any:
    value = dataset[()]
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        return None if value == MISSING else value
    return value.item() if isinstance(value, np.generic) else value


def _trailing_number(name: str) -> tuple[int, str]:
    digits = name.rpartition("_")[2]
    return (int(digits) if digits.isdigit() else -1, name)
