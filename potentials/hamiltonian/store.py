"""Label files: Hamiltonians of many molecules in one HDF5 file, matrices as packed lower triangles.

Columns run over all molecules: over atoms (`numbers`, `positions` Å, `forces` eV/Å), orbitals (`orbital_energies`
Eh), triangles (`hamiltonian`, `guess`, `overlap`, or `delta` = hamiltonian - guess), molecules (`n_atoms`,
`n_orbitals`, `name`, `energy` Eh, `cycles`, `seconds`). A triangle is stored row by row (`numpy.tril_indices`). A file
says its level of theory, the shells of its elements and where it comes from; a compact file holds only `delta`, in
float32.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.errors import DataError
from ...datasets.h5file import damaged, open_hdf5
from .layout import OrbitalLayout
from .level import Level

if TYPE_CHECKING:
    import h5py

FORMAT = "tesseral-hamiltonian"
SCHEMA_VERSION = 1
UNITS = {"length": "Å", "energy": "Eh", "forces": "eV/Å", "matrices": "Eh"}
MATRICES = ("hamiltonian", "guess", "overlap", "delta")
BATCH = 64  # labels written at once
_OVER = {"numbers": "atoms", "positions": "atoms", "forces": "atoms", "orbital_energies": "orbitals"}
_SCALARS = {"energy": np.float64, "cycles": np.int32, "seconds": np.float64}


@dataclass
class Label:
    """Hamiltonian of one molecule and what belongs to it; energies in Eh, absent parts are None (NaN, -1)."""

    numbers: np.ndarray
    positions: np.ndarray
    """``(n_atoms, 3)`` Å."""
    hamiltonian: np.ndarray | None = None
    """``(n_orbitals, n_orbitals)`` in PySCF's order, like all matrices."""
    guess: np.ndarray | None = None
    overlap: np.ndarray | None = None
    delta: np.ndarray | None = None
    """hamiltonian - guess."""
    orbital_energies: np.ndarray | None = None
    energy: float = float("nan")
    forces: np.ndarray | None = None
    """eV/Å"""
    cycles: int = -1
    seconds: float = float("nan")
    name: str = ""

    def __post_init__(self) -> None:
        self.numbers = np.asarray(self.numbers, dtype=np.int64)
        if self.delta is None and self.hamiltonian is not None and self.guess is not None:
            self.delta = self.hamiltonian - self.guess

    @property
    def n_orbitals(self) -> int:
        """Size of the matrices."""
        sizes = [len(m) for m in (self.hamiltonian, self.delta, self.overlap) if m is not None]
        return sizes[0] if sizes else 0

    def compact(self) -> Label:
        """Only geometry, energies and the difference to the guess, in single precision.

        Raises:
            DataError: the guess is not known.
        """
        if self.delta is None:
            raise DataError("no guess is stored with this label: add it (tesseral data hamiltonian)", self.name)
        delta = self.delta.astype(np.float32)
        return replace(self, hamiltonian=None, guess=None, overlap=None, delta=delta)


def pack(matrix: np.ndarray) -> np.ndarray:
    """Lower triangle ``(n(n+1)/2,)`` of a symmetric matrix, row by row."""
    return matrix[np.tril_indices(len(matrix))]


def unpack(triangle: np.ndarray) -> np.ndarray:
    """Symmetric matrix ``(n, n)`` of a packed lower triangle."""
    n = (int(np.sqrt(8 * len(triangle) + 1)) - 1) // 2
    if n * (n + 1) // 2 != len(triangle):
        raise DataError(f"{len(triangle)} numbers are not the lower triangle of a square matrix")
    matrix = np.zeros((n, n), dtype=triangle.dtype)
    rows, columns = np.tril_indices(n)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix


class LabelFile(Sequence[Label]):
    """A label file opened for reading, label by label; can be pickled.

    Raises:
        DataError: no such file, no label file, damaged, or written by a later version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        attributes = self._open().attrs
        if attributes.get("format") != FORMAT:
            raise DataError("this is no file of Hamiltonian labels", str(path))
        if int(attributes["schema_version"]) > SCHEMA_VERSION:
            raise DataError("written by a later version of tesseral: update it", str(path))
        self.level = Level.from_header(json.loads(attributes["level"]), str(path))
        self.layout = OrbitalLayout.from_header(json.loads(attributes["layout"]))
        self.provenance: dict[str, Any] = json.loads(attributes["provenance"])
        self.columns = tuple(self._open())
        self.n_atoms: np.ndarray = self._open()["n_atoms"][:]
        self.n_orbitals: np.ndarray = self._open()["n_orbitals"][:]
        n = self.n_orbitals.astype(np.int64)
        self._starts = {
            "atoms": np.concatenate([[0], np.cumsum(self.n_atoms)]),
            "orbitals": np.concatenate([[0], np.cumsum(n)]),
            "triangles": np.concatenate([[0], np.cumsum(n * (n + 1) // 2)]),
        }

    def _open(self) -> h5py.File:
        if self._file is None:
            self._file = open_hdf5(self.path)
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __enter__(self) -> LabelFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def names(self) -> list[str]:
        """Name of every label."""
        return [str(name) for name in self._open()["name"].asstr()[:]]

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        k = int(number) + (len(self) if number < 0 else 0)
        if not 0 <= k < len(self):
            raise IndexError(f"{self.path} has {len(self)} labels, label {number} was asked")
        return self.read(k)

    def read(self, k: int, matrices: Iterable[str] = MATRICES) -> Label:
        """Label k, with only these of its matrices."""
        file = self._open()
        parts: dict[str, Any] = {}
        try:
            for name, over in _OVER.items():
                if name in file:
                    parts[name] = file[name][self._rows(over, k)]
            for name in matrices:
                if name in file:
                    parts[name] = unpack(file[name][self._rows("triangles", k)])
            for name, kind in _SCALARS.items():
                parts[name] = np.asarray(file[name][k], dtype=kind).item()
            return Label(name=file["name"].asstr()[k], **parts)
        except OSError as error:
            raise damaged(self.path, f"label {k}", error) from None

    def _rows(self, over: str, k: int) -> slice:
        starts = self._starts[over]
        return slice(int(starts[k]), int(starts[k + 1]))


def is_label_file(path: str | Path) -> bool:
    """Whether this is a label file of ours (no error if it is not even HDF5)."""
    try:
        with open_hdf5(path) as file:
            return bool(file.attrs.get("format") == FORMAT)
    except DataError:
        return False


def write_labels(
    path: str | Path,
    labels: Iterable[Label],
    level: Level,
    layout: OrbitalLayout,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> int:
    """Write a label file atomically; the number of labels.

    All labels hold the same parts. The file appears when it is complete.

    Raises:
        DataError: labels that hold different parts, or none at all.
    """
    import h5py

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    count, batch = 0, []
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["schema_version"] = SCHEMA_VERSION
            file.attrs["level"] = json.dumps(level.header())
            file.attrs["layout"] = json.dumps(layout.header())
            file.attrs["units"] = json.dumps(UNITS)
            file.attrs["provenance"] = json.dumps(dict(provenance or {}))
            for label in labels:
                layout.require(label.numbers.tolist(), label.name)
                batch.append(label)
                count += 1
                if len(batch) == BATCH:
                    _append(file, batch)
                    batch = []
            if batch:
                _append(file, batch)
            if not count:
                raise DataError("no labels to write", str(path))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return count


def _append(file: h5py.File, labels: list[Label]) -> None:
    """Add a batch to the columns of a file under construction."""
    columns: dict[str, np.ndarray] = {
        "n_atoms": np.array([len(x.numbers) for x in labels], dtype=np.int32),
        "n_orbitals": np.array([x.n_orbitals for x in labels], dtype=np.int32),
        "numbers": np.concatenate([x.numbers for x in labels]).astype(np.uint8),
        "positions": np.concatenate([x.positions for x in labels]),
        **{k: np.array([getattr(x, k) for x in labels], dtype=kind) for k, kind in _SCALARS.items()},
    }
    compact = labels[0].hamiltonian is None
    wanted = ["orbital_energies", "forces", *(m for m in MATRICES if m != "delta" or compact)]
    for name in wanted:
        parts = [getattr(label, name) for label in labels]
        present = [part for part in parts if part is not None]
        if len(present) not in (0, len(parts)):
            raise DataError(f"{name}: some labels hold it, others do not")
        if present:
            triangles = name in MATRICES
            columns[name] = np.concatenate([pack(part) if triangles else part for part in present])
    first = "n_atoms" not in file
    if not first and set(columns) | {"name"} != set(file):
        raise DataError(f"some labels hold {sorted(set(columns) ^ (set(file) - {'name'}))}, others do not")
    for name, values in columns.items():
        _extend(file, name, values)
    _extend_names(file, [label.name for label in labels])


def _extend(file: h5py.File, name: str, values: np.ndarray) -> None:
    if name not in file:
        file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=True)
        return
    column = file[name]
    start = len(column)
    column.resize(start + len(values), axis=0)
    column[start:] = values


def _extend_names(file: h5py.File, names: list[str]) -> None:
    import h5py

    if "name" not in file:
        file.create_dataset("name", data=names, maxshape=(None,), dtype=h5py.string_dtype())
        return
    column = file["name"]
    start = len(column)
    column.resize(start + len(names), axis=0)
    column[start:] = names
