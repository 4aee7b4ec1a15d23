"""fairchem's .aselmdb: an LMDB whose values are zlib-compressed JSON rows of an ASE database, in eV and Å.

Older LMDBs of the same community hold pickled objects; they are recognised and refused, never opened.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..convert import CONSTRAINTS
from ..errors import DataError
from ..keys import Labeller
from ..source import Source
from ..structure import LABELS, Structure
from . import PICKLE_MAGIC

# Rows of an ASE database: what is not a per-atom array, a label or a key of the user.
GEOMETRY = ("numbers", "positions", "cell", "pbc")
PER_ATOM = ("tags", "momenta", "masses", "initial_magmoms", "initial_charges")
BOOKKEEPING = ("id", "unique_id", "ctime", "mtime", "user", "calculator", "calculator_parameters")


def read(path: Path, labeller: Labeller) -> Iterator[Structure]:
    """The labelled frames of one file or of all .aselmdb files in a folder."""
    yield from LmdbSource(path, labeller)


class LmdbSource(Source):
    """Random access to .aselmdb files; each process opens them for itself.

    Raises:
        DataError: lmdb is not installed, pickled records, a damaged file or row.
    """

    def __init__(self, path: str | Path, labeller: Labeller | None = None) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._labeller = labeller or Labeller(source=self.name)
        self._files = _files(self.path)
        self._sizes: np.ndarray | None = None
        self._keys = [_row_keys(_environment(file)) for file in self._files]
        self._starts = np.cumsum([0, *map(len, self._keys)])

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of every frame; from metadata.npz beside the files, else one pass over all rows."""
        if self._sizes is None:
            self._sizes = self._listed_sizes()
        if self._sizes is None:
            self._sizes = np.array([len(self._row(i)["numbers"]) for i in range(len(self))], dtype=np.int64)
        return self._sizes

    def _listed_sizes(self) -> np.ndarray | None:
        listed = self.path / "metadata.npz"
        if not self.path.is_dir() or not listed.exists():
            return None
        with np.load(listed, allow_pickle=False) as metadata:
            sizes = metadata["natoms"] if "natoms" in metadata.files else np.zeros(0)
        return sizes.astype(np.int64) if len(sizes) == len(self) else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _row(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        key = self._keys[number][index - int(self._starts[number])]
        with _environment(self._files[number]).begin() as transaction:
            return decode_row(transaction.get(key), self.where(index))

    def frame(self, index: int) -> Structure:
        """Read one frame."""
        where = self.where(index)
        return self._labeller(_structure(self._row(index), where), where)


def decode_row(value: bytes, where: str) -> dict[str, Any]:
    """The JSON record in one value.

    Raises:
        DataError: the value is pickled or damaged.
    """
    if value.startswith(PICKLE_MAGIC):
        raise DataError(
            "this LMDB holds pickled records (older OCP/fairchem .lmdb), which are never opened, since that would "
            "execute code from the file; convert it with fairchem to .aselmdb",
            where,
        )
    try:
        text = zlib.decompress(value)
        if text.startswith(PICKLE_MAGIC):
            return decode_row(text, where)
        return json.loads(text, object_hook=_ndarray)
    except (zlib.error, ValueError, KeyError) as error:
        raise DataError(f"damaged record ({error})", where) from None


def _ndarray(value: dict[str, Any]) -> Any:
    """ASE writes arrays as {"__ndarray__": [shape, dtype, numbers]}."""
    if "__ndarray__" not in value:
        return value
    shape, dtype, data = value["__ndarray__"]
    if np.dtype(dtype).hasobject:
        raise ValueError("array of objects")
    return np.array(data, dtype=dtype).reshape(shape)


def _structure(row: dict[str, Any], where: str) -> Structure:
    missing = [key for key in ("numbers", "positions") if key not in row]
    if missing:
        raise DataError(f"the record has no {' and '.join(missing)}; is this an .aselmdb?", where)
    n_atoms = len(row["numbers"])
    info: dict[str, Any] = {**(row.get("data") or {}), **(row.get("key_value_pairs") or {})}
    constraints = row.get("constraints")
    if constraints:
        info[CONSTRAINTS] = json.loads(constraints) if isinstance(constraints, str) else constraints
    labels: dict[str, np.ndarray] = {}
    for key, spec in LABELS.items():
        value = row.get(key)
        if value is None:
            continue
        expected = (n_atoms, *spec.shape) if spec.per_atom else spec.shape
        if np.size(value) != int(np.prod(expected)):
            info[key] = value  # a 3x3 stress, for instance: left to the labeller
        else:
            labels[key] = np.asarray(value, dtype=np.float64).reshape(expected)
    known = {*GEOMETRY, *PER_ATOM, *BOOKKEEPING, *LABELS, "data", "key_value_pairs", "constraints"}
    info.update({key: value for key, value in row.items() if key not in known})
    return Structure(
        numbers=row["numbers"],
        positions=row["positions"],
        cell=np.asarray(row.get("cell", np.zeros(9)), dtype=np.float64).reshape(3, 3),
        pbc=row.get("pbc", False),
        labels=labels,
        arrays={key: np.asarray(row[key]) for key in PER_ATOM if row.get(key) is not None},
        info=info,
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / "data.mdb").exists():
        return [path / "data.mdb"]
    return sorted([*path.glob("*.aselmdb"), *path.glob("*.lmdb")])


_opened: dict[Path, tuple[int, Any]] = {}  # file -> (process, environment): LMDB allows one per file and process


def _environment(path: Path) -> Any:
    """The open environment of a file; after a fork the inherited one is closed and opened anew."""
    resolved = path.resolve()
    process, environment = _opened.get(resolved, (0, None))
    if process != os.getpid():
        if environment is not None:
            environment.close()
        environment = _open(path)
        _opened[resolved] = (os.getpid(), environment)
    return environment


def _open(path: Path) -> Any:
    try:
        import lmdb
    except ImportError:
        raise DataError("reading LMDB needs the package lmdb: pip install lmdb", str(path)) from None
    try:
        return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise DataError(f"cannot be opened as LMDB ({error}); is it complete?", str(path)) from None


def _row_keys(environment: Any) -> list[bytes]:
    """Keys of the rows: numbers, in order; others (nextid, metadata, deleted_ids) are bookkeeping."""
    with environment.begin() as transaction, transaction.cursor() as cursor:
        keys = [bytes(key) for key in cursor.iternext(values=False)]
    return sorted((key for key in keys if key.isdigit()), key=int)
