"""Structures as columns: the arrays that a store holds, for a block of consecutive frames.

A block is a dictionary path -> array. The first part of the path or the table `AXES` tells what its rows are:

    frames/n_atoms, cell, pbc, charge (NaN = none), spin (0 = none), n_bonds (-1 = not known), info_bytes
    atoms/numbers, positions             rows of all frames one after another
    bonds/rows                           (i, j, order), i and j counted inside the frame
    info/json                            bytes of the JSON records one after another
    labels/NAME/values, mask             per frame or per atom; mask (one per frame) is False where a frame
                                         lacks the label, its values are then NaN
    arrays/NAME|DTYPE|SHAPE/values, mask other per-atom arrays; the same name may occur with several types
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from . import codec
from .errors import DataError
from .structure import LABELS, Structure

Block = dict[str, np.ndarray]
COLUMN_KINDS = "biufc"
TEXT_ARRAYS = "__arrays__"  # key of the JSON record under which text arrays travel
FIXED: dict[str, tuple[str, tuple[int, ...]]] = {
    "frames/n_atoms": ("<i4", ()),
    "frames/cell": ("<f8", (3, 3)),
    "frames/pbc": ("|b1", (3,)),
    "frames/charge": ("<f8", ()),
    "frames/spin": ("<i4", ()),
    "frames/n_bonds": ("<i4", ()),
    "frames/info_bytes": ("<i4", ()),
    "atoms/numbers": ("<i2", ()),
    "atoms/positions": ("<f8", (3,)),
    "bonds/rows": ("<i4", (3,)),
    "info/json": ("|u1", ()),
}


def axis(path: str) -> str:
    """What the rows of a column are: "frames", "atoms", "bonds" or "info"."""
    first, _, rest = path.partition("/")
    if first in ("labels", "arrays"):
        name, _, part = rest.rpartition("/")
        if part == "mask":
            return "frames"
        return "frames" if first == "labels" and not LABELS[name].per_atom else "atoms"
    return first


def array_column(name: str, values: np.ndarray) -> str:
    """Path of the column of a per-atom array, from its name, type and shape per atom."""
    shape = ",".join(map(str, values.shape[1:]))
    return f"arrays/{quote(name, safe=' _-.')}|{values.dtype.newbyteorder('<').str}|{shape}"


def array_name(column: str) -> str:
    """Name of the per-atom array in a column path or group name."""
    return unquote(column.removeprefix("arrays/").split("|", 1)[0])


def missing_value(dtype: np.dtype) -> Any:
    """What stands where the mask is False."""
    return np.nan if dtype.kind in "fc" else 0


def pack(structures: Sequence[Structure], first: int = 0) -> Block:
    """The block of these frames; `first` is the number of the first one, for messages.

    Raises:
        DataError: a label or an array whose shape does not fit the frame.
    """
    for number, structure in enumerate(structures, start=first):
        check_shapes(structure, f"frame {number}")
    sizes = np.array([s.n_atoms for s in structures], dtype=np.int64)
    records = [_record(s) for s in structures]
    bonds = [s.bonds for s in structures if s.bonds is not None]
    block: Block = {
        "frames/n_atoms": sizes,
        "frames/cell": np.array([s.cell for s in structures]).reshape(-1, 3, 3),
        "frames/pbc": np.array([s.pbc for s in structures], dtype=bool).reshape(-1, 3),
        "frames/charge": np.array([np.nan if s.charge is None else s.charge for s in structures]),
        "frames/spin": np.array([s.spin or 0 for s in structures]),
        "frames/n_bonds": np.array([-1 if s.bonds is None else len(s.bonds) for s in structures]),
        "frames/info_bytes": np.array([len(r) for r in records]),
        "atoms/numbers": _joined([s.numbers for s in structures], ()),
        "atoms/positions": _joined([s.positions for s in structures], (3,)),
        "bonds/rows": _joined(bonds, (3,)),
        "info/json": np.frombuffer(b"".join(records), dtype=np.uint8),
    }
    block = {path: values.astype(FIXED[path][0], copy=False) for path, values in block.items()}
    for name in sorted({key for s in structures for key in s.labels}):
        present = {i: s.labels[name] for i, s in enumerate(structures) if name in s.labels}
        spec = LABELS[name]
        _add_masked(block, f"labels/{name}", present, spec.per_atom)
    groups: dict[str, dict[int, np.ndarray]] = {}
    for i, structure in enumerate(structures):
        for name, values in structure.arrays.items():
            if values.dtype.kind in COLUMN_KINDS:
                groups.setdefault(array_column(name, values), {})[i] = values
    for column, present in sorted(groups.items()):
        _add_masked(block, column, present, per_atom=True)
    return block


def check_shapes(structure: Structure, where: str) -> None:
    """Refuse what cannot be stored (values are not judged: the data doctor does that)."""
    for key, value in structure.labels.items():
        if key not in LABELS:
            raise DataError(f"unknown label {key!r}: labels are {', '.join(LABELS)}", where)
        spec = LABELS[key]
        expected = (structure.n_atoms, *spec.shape) if spec.per_atom else spec.shape
        if value.shape != expected:
            raise DataError(f"label {key!r} has shape {value.shape}, expected {expected}", where)
    for key, value in structure.arrays.items():
        if value.shape[:1] != (structure.n_atoms,):
            raise DataError(f"array {key!r} has shape {value.shape} for {structure.n_atoms} atoms", where)


def unpack(block: Mapping[str, np.ndarray], frames: Iterable[int], where: str = "") -> list[Structure]:
    """The structures `frames` of a block; they share no array with it."""
    atoms = _bounds(block["frames/n_atoms"])
    bonds = _bounds(np.maximum(block["frames/n_bonds"], 0))
    info = _bounds(block["frames/info_bytes"])
    labels = [path.split("/")[1] for path in block if path.startswith("labels/") and path.endswith("/mask")]
    columns = [path[: -len("/mask")] for path in block if path.startswith("arrays/") and path.endswith("/mask")]
    structures = []
    for i in frames:
        rows = slice(atoms[i], atoms[i + 1])
        record = bytes(block["info/json"][info[i] : info[i + 1]])
        values = codec.decode(record, where) if record else {}
        arrays = {array_name(c): block[f"{c}/values"][rows].copy() for c in columns if block[f"{c}/mask"][i]}
        arrays.update(values.pop(TEXT_ARRAYS, {}))
        charge, spin = block["frames/charge"][i], block["frames/spin"][i]
        structures.append(
            Structure(
                numbers=block["atoms/numbers"][rows],
                positions=block["atoms/positions"][rows].copy(),
                cell=block["frames/cell"][i].copy(),
                pbc=block["frames/pbc"][i].copy(),
                charge=None if np.isnan(charge) else float(charge),
                spin=int(spin) or None,
                bonds=None if block["frames/n_bonds"][i] < 0 else block["bonds/rows"][bonds[i] : bonds[i + 1]],
                labels={
                    name: block[f"labels/{name}/values"][rows if LABELS[name].per_atom else i].copy()
                    for name in labels
                    if block[f"labels/{name}/mask"][i]
                },
                arrays=arrays,
                info=values,
            )
        )
    return structures


def _record(structure: Structure) -> bytes:
    text = {k: v for k, v in structure.arrays.items() if v.dtype.kind not in COLUMN_KINDS}
    if not structure.info and not text:
        return b""
    info = codec.plain({**structure.info, **({TEXT_ARRAYS: text} if text else {})})
    return codec.encode(info).encode()


def _add_masked(block: Block, column: str, present: Mapping[int, np.ndarray], per_atom: bool) -> None:
    """Add values and mask of a column that only the frames `present` have."""
    sizes = block["frames/n_atoms"]
    mask = np.zeros(len(sizes), dtype=bool)
    mask[list(present)] = True
    sample = next(iter(present.values()))
    dtype = sample.dtype.newbyteorder("<")
    shape = (int(sizes.sum()), *sample.shape[1:]) if per_atom else (len(sizes), *sample.shape)
    values = np.full(shape, missing_value(dtype), dtype=dtype)
    bounds = _bounds(sizes)
    for i, value in present.items():
        values[slice(bounds[i], bounds[i + 1]) if per_atom else i] = value
    block[f"{column}/values"], block[f"{column}/mask"] = values, mask


def _joined(arrays: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros((0, *shape), dtype=np.int64), *arrays])


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
