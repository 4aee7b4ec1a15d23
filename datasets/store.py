"""The HDF5 store: a data set of any size as one file, read at random by any number of worker processes.

Layout (schema version 1): the columns of `columns.py`, concatenated over all frames, chunked and compressed,
each chunk with a checksum; root attributes format, schema_version, n_frames, units (JSON) and checksum (SHA-256
of all columns); dataset `provenance` (JSON). A finished store is never changed in place (`store_writer.py`).
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .columns import FIXED, Block, axis, unpack
from .errors import DataError
from .h5file import damaged, open_hdf5
from .source import Source
from .store_writer import FORMAT, SCHEMA_VERSION, StoreWriter, hash_columns, write_store
from .structure import LABELS, Structure

if TYPE_CHECKING:
    import h5py

__all__ = ["Store", "StoreWriter", "is_store", "write_store"]
BLOCK_ATOMS = 4096  # atoms per block that is read and kept at once
CACHE_BYTES = 64 << 20


def is_store(path: str | Path) -> bool:
    """Whether an HDF5 file is one of ours."""
    with open_hdf5(path) as file:
        return _text(file.attrs.get("format", "")) == FORMAT


class Store(Source):
    """A store, opened for reading.

    Frames are read in blocks of consecutive ones; the last blocks used are kept, `cache_bytes` in all. Each
    process opens the file for itself (also after a fork).

    Raises:
        DataError: no store, a newer schema, a truncated or damaged file.
    """

    def __init__(self, path: str | Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.cache_bytes = cache_bytes
        self._identity = ""
        self._connect()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "name": self.name,
            "cache_bytes": self.cache_bytes,
            "_identity": self._identity,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _connect(self) -> None:
        file = open_hdf5(self.path)
        self._check(file)
        self._file, self._pid = file, os.getpid()
        self._columns = {path: file[path] for path in _column_paths(file)}
        self._n_atoms = self._read("frames/n_atoms", 0, None).astype(np.int64)
        self._bounds = {"atoms": _cumulated(self._n_atoms)}
        self._bounds["info"] = _cumulated(self._read("frames/info_bytes", 0, None))
        self._bounds["bonds"] = _cumulated(np.maximum(self._read("frames/n_bonds", 0, None), 0))
        mean = max(1.0, float(self._n_atoms.mean())) if len(self._n_atoms) else 1.0
        self._block = int(np.clip(BLOCK_ATOMS / mean, 1, 1024))
        self._cache: OrderedDict[int, Block] = OrderedDict()
        self._kept = max(2, int(self.cache_bytes / (self._block * mean * self._bytes_per_atom())))

    def _check(self, file: h5py.File) -> None:
        if _text(file.attrs.get("format", "")) != FORMAT:
            raise DataError("this HDF5 file is no tesseral store; convert it with `tesseral data convert`", self.name)
        version = int(file.attrs["schema_version"])
        if version > SCHEMA_VERSION:
            raise DataError(f"store of schema {version}, this version reads up to {SCHEMA_VERSION}: update", self.name)
        identity = _text(file.attrs["checksum"])
        if self._identity and identity != self._identity:
            raise DataError("the store was replaced while in use; open it again", self.name)
        self._identity = identity

    def _bytes_per_atom(self) -> float:
        total = sum(d.nbytes for d in self._columns.values())
        return max(1.0, total / max(1, int(self._bounds["atoms"][-1])))

    def _read(self, path: str, start: int, stop: int | None) -> np.ndarray:
        try:
            return self._columns[path][start:stop]
        except OSError as error:
            raise damaged(self.path, path, error) from None

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of every frame."""
        return self._n_atoms

    @property
    def units(self) -> dict[str, str]:
        """Units of everything in the store."""
        return json.loads(_text(self._file.attrs["units"]))

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the data came from: sources, keys, units given, version, command."""
        return json.loads(self._file["provenance"].asstr()[()])

    @property
    def checksum(self) -> str:
        """SHA-256 of all columns, as recorded when the store was written."""
        return self._identity

    @property
    def label_counts(self) -> dict[str, int]:
        """Number of frames that have each label."""
        masks = {name: f"labels/{name}/mask" for name in LABELS}
        return {n: int(self._read(p, 0, None).sum()) for n, p in masks.items() if p in self._columns}

    def verify(self) -> None:
        """Read everything and compare with the recorded checksum.

        Raises:
            DataError: names the first damaged column.
        """
        if hash_columns(self._file, self.name) != self._identity:
            raise DataError("the contents do not match the recorded checksum: make the store again", self.name)

    def frame(self, index: int) -> Structure:
        """Read one frame."""
        number, position = divmod(index, self._block)
        return unpack(self._load(number), [position], self.where(index))[0]

    def frames(self, start: int, stop: int) -> list[Structure]:
        """Read consecutive frames."""
        found: list[Structure] = []
        while start < stop:
            number, position = divmod(start, self._block)
            count = min(stop - start, self._block - position)
            found += unpack(self._load(number), range(position, position + count), self.name)
            start += count
        return found

    def _load(self, number: int) -> Block:
        if self._pid != os.getpid():
            self._connect()
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        start = number * self._block
        block = self._slice(start, min(start + self._block, len(self)))
        self._cache[number] = block
        while len(self._cache) > self._kept:
            self._cache.popitem(last=False)
        return block

    def _slice(self, start: int, stop: int) -> Block:
        block: Block = {}
        for path in self._columns:
            kind = axis(path)
            if kind == "frames":
                block[path] = self._read(path, start, stop)
            else:
                bounds = self._bounds[kind]
                block[path] = self._read(path, int(bounds[start]), int(bounds[stop]))
        return block


def _column_paths(file: h5py.File) -> list[str]:
    paths = list(FIXED)
    for group in ("labels", "arrays"):
        for name in file.get(group, {}):
            paths += [f"{group}/{name}/values", f"{group}/{name}/mask"]
    return paths


def _cumulated(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
