"""Hamiltonians made elsewhere: QH9 and MD17 data bases, npz, plain HDF5; read label by label.

What a file does not state is never guessed in silence: units and orbital order of files with an overlap matrix are
those that reproduce it, and the level of theory is checked on the first label (`labels.check_level`). Traps that this
catches: QH9's dynamic sets hold positions in bohr, its stable set in Å; MD17's matrices are in the order of ORCA; B3LYP
has two meanings (`level.RESOLVED`). Sources: QH9 (arXiv 2306.09549), SchNOrb (arXiv 1906.10033).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...datasets.errors import DataError
from ...datasets.h5file import open_hdf5
from ...datasets.units import BOHR
from .layout import OrbitalLayout, layout
from .level import RESOLVED, Level
from .store import Label, LabelFile, is_label_file, unpack

# In ORCA p is (z, x, y) and d is m = 0, 1, -1, 2, -2; index of each PySCF function among ORCA's.
_ORCA_ORDER = {0: (0,), 1: (1, 2, 0), 2: (4, 2, 0, 1, 3)}


class Foreign(NamedTuple):
    """Labels of a file and the level of theory that it states, or None."""

    labels: Sequence[Label]
    level: Level | None


class Rows(Sequence[Label]):
    """Labels that are read when they are asked for."""

    def __init__(self, count: int, read: Callable[[int], Label]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            chosen = range(self._count)[number]
            return Rows(len(chosen), lambda k: self._read(chosen[k]))
        return self._read(range(self._count)[number])

    def __iter__(self) -> Iterator[Label]:
        return (self._read(k) for k in range(self._count))


def chain(parts: Sequence[Sequence[Label]]) -> Sequence[Label]:
    """Several sequences of labels one after the other, still read when asked for."""
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    def read(k: int) -> Label:
        part = int(np.searchsorted(starts, k, side="right")) - 1
        return parts[part][k - int(starts[part])]

    return parts[0] if len(parts) == 1 else Rows(int(starts[-1]), read)


def reader_of(path: Path) -> Callable[[Path], Foreign] | None:
    """The function that reads this file of Hamiltonians; None if it is none of the known formats."""
    suffix = path.suffix.lower()
    if not path.is_file():
        return None
    if suffix in (".h5", ".hdf5"):
        return _hdf5_reader(path)
    if suffix == ".npz":
        with np.load(path) as file:
            return _read_npz if _npz_keys(file.files) else None
    if suffix == ".db":
        return _sqlite_reader(path)
    return None


def _hdf5_reader(path: Path) -> Callable[[Path], Foreign] | None:
    if is_label_file(path):
        return _read_own
    with open_hdf5(path) as file:
        if "hamiltonian" in file:
            return _read_stacked
        first = next(iter(file.values()), None)
        return _read_groups if "hamiltonian" in getattr(first, "keys", list)() else None


def _read_own(path: Path) -> Foreign:
    file = LabelFile(path)
    return Foreign(file, file.level)


def _read_stacked(path: Path) -> Foreign:
    """One molecule in many geometries: square matrices stacked, attributes `xc`, `basis`, `code`."""
    with open_hdf5(path) as file:
        level = _stated(dict(file.attrs), path)
        columns = {key: file[key][:] for key in file}

    def read(k: int) -> Label:
        def row(key: str) -> Any:
            return columns[key][k] if key in columns else None

        return Label(
            columns["numbers"],
            columns["positions"][k],
            hamiltonian=columns["hamiltonian"][k],
            overlap=row("overlap"),
            orbital_energies=row("mo_energy"),
            energy=float(columns["energy_Ha"][k]) if "energy_Ha" in columns else float("nan"),
            forces=row("forces"),
            name=f"{path.stem}_{k:05d}",
        )

    return Foreign(Rows(len(columns["hamiltonian"]), read), level)


def _read_groups(path: Path) -> Foreign:
    """One group per molecule, packed lower triangles, attributes `xc`, `basis`, `code` of the file."""
    with open_hdf5(path) as file:
        level, names = _stated(dict(file.attrs), path), list(file)

    def read(k: int) -> Label:
        with open_hdf5(path) as file:
            group = file[names[k]]
            return Label(
                group["numbers"][:],
                group["positions"][:],
                hamiltonian=unpack(group["hamiltonian"][:]),
                overlap=unpack(group["overlap"][:].astype(np.float64)) if "overlap" in group else None,
                orbital_energies=group["mo_energy"][:],
                energy=float(group.attrs["energy_Ha"]),
                name=names[k],
            )

    return Foreign(Rows(len(names), read), level)


def _stated(attributes: dict[str, Any], path: Path) -> Level:
    """Level of such a file from its attributes; the grid level is 3 where it is not stated."""
    functional = str(attributes.get("xc", "")).split(" ")[0].lower()
    if functional not in RESOLVED:
        raise DataError(f"the attribute xc names no known functional: {attributes.get('xc')!r}", str(path))
    grid = int(attributes.get("grid_level", 3))
    return Level(functional, RESOLVED[functional], str(attributes["basis"]), grid, str(attributes.get("code", "")))


def _sqlite(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _sqlite_reader(path: Path) -> Callable[[Path], Foreign] | None:
    with path.open("rb") as file:
        if file.read(15) != b"SQLite format 3":
            return None
    with _sqlite(path) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "data" in tables:
        return _read_qh9
    return _read_ase if "systems" in tables else None


def _read_qh9(path: Path) -> Foreign:
    """QH9: id, number of atoms, Z (int32), positions, matrix (float64); dynamic sets have more columns and bohr."""
    with _sqlite(path) as connection:
        width = len(connection.execute("SELECT * FROM data LIMIT 1").fetchone() or ())
        rows = [row for (row,) in connection.execute("SELECT rowid FROM data ORDER BY rowid")]
    if width not in (5, 10):
        raise DataError(f"the table `data` has {width} columns, QH9 files have 5 (stable) or 10 (dynamic)", str(path))
    dynamic = width == 10

    def read(k: int) -> Label:
        with _sqlite(path) as connection:
            row = connection.execute("SELECT * FROM data WHERE rowid = ?", (rows[k],)).fetchone()
        name, blobs = (f"{_integer(row[0])}_{row[1]}", (3, 4, 9)) if dynamic else (str(row[0]), (2, 3, 4))
        numbers, positions, matrix = (
            np.frombuffer(row[column], kind) for column, kind in zip(blobs, (np.int32, float, float), strict=True)
        )
        size = round(len(matrix) ** 0.5)
        if size * size != len(matrix) or len(positions) != 3 * len(numbers):
            raise DataError(f"row {rows[k]}: {len(matrix)} matrix elements of {len(numbers)} atoms", str(path))
        unit = BOHR if dynamic else 1.0
        return Label(numbers, positions.reshape(-1, 3) * unit, hamiltonian=matrix.reshape(size, size), name=name)

    return Foreign(Rows(len(rows), read), _qh9_level(path.stem))


def _integer(value: Any) -> int:
    return int(np.frombuffer(value, np.int64)[0]) if isinstance(value, bytes) else int(value)


def _qh9_level(stem: str) -> Level | None:
    """Level by the published names of the files: PySCF 2.2.1 meant b3lyp5, 2.3.0 the Gaussian form."""
    name = stem.lower()
    if "qh9stable" in name or "qh9dynamic_300k" in name:
        return Level("b3lyp5", RESOLVED["b3lyp5"], "def2-svp", 3, "PySCF 2.2.1")
    if "qh9dynamic_100k" in name:
        return Level("b3lyp", RESOLVED["b3lyp"], "def2-svp", 3, "PySCF 2.3.0")
    return None


def _read_ase(path: Path) -> Foreign:
    """MD17 Hamiltonians: an ASE data base with `hamiltonian` and `overlap` in the data of its rows, PBE/def2-SVP."""
    from ase.db import connect

    base = connect(path, type="db")
    rows = [row.id for row in base.select(columns=["id"])]

    def read(k: int) -> Label:
        row = base.get(id=rows[k])
        data = row.data
        if "hamiltonian" not in data or "overlap" not in data:
            raise DataError(f"row {rows[k]} has no hamiltonian or no overlap", str(path))
        raw = Label(row.numbers, row.positions, hamiltonian=_square(data["hamiltonian"], len(row.numbers)))
        raw = replace(raw, overlap=_square(data["overlap"], len(row.numbers)), name=f"{path.stem}_{rows[k]:05d}")
        return in_pyscf_order(raw, "def2-svp", str(path))

    return Foreign(Rows(len(rows), read), Level("pbe", RESOLVED["pbe"], "def2-svp", 3))


def _square(matrix: Any, n_atoms: int) -> np.ndarray:
    plain = np.asarray(matrix, dtype=np.float64).squeeze()
    if plain.ndim != 2 or plain.shape[0] != plain.shape[1]:
        raise DataError(f"a Hamiltonian of {n_atoms} atoms has shape {plain.shape}, a square matrix was expected")
    return plain


def _npz_keys(keys: Sequence[str]) -> dict[str, str] | None:
    """Which array is what: {"numbers": "Z", ...}; None if geometry, Hamiltonian or overlap are not there."""
    names = {
        "numbers": ("numbers", "Z", "z", "atomic_numbers"),
        "positions": ("positions", "R", "pos", "coords"),
        "hamiltonian": ("hamiltonian", "H", "fock", "F_matrix"),
        "overlap": ("overlap", "S"),
    }
    found = {what: next((k for k in spellings if k in keys), "") for what, spellings in names.items()}
    return found if all(found.values()) else None


def _read_npz(path: Path) -> Foreign:
    """One molecule in many geometries as arrays of numbers, positions, Hamiltonians and overlaps."""
    with np.load(path) as file:
        keys = _npz_keys(file.files) or {}
        columns = {what: file[key] for what, key in keys.items()}
    numbers = columns["numbers"]
    count = len(columns["hamiltonian"])

    def read(k: int) -> Label:
        raw = Label(
            numbers if numbers.ndim == 1 else numbers[k],
            columns["positions"][k].astype(np.float64),
            hamiltonian=_square(columns["hamiltonian"][k], numbers.shape[-1]),
            overlap=_square(columns["overlap"][k], numbers.shape[-1]),
            name=f"{path.stem}_{k:05d}",
        )
        return in_pyscf_order(raw, "def2-svp", str(path))

    return Foreign(Rows(count, read), None)


def in_pyscf_order(raw: Label, basis: str, where: str) -> Label:
    """A label with positions in Å and matrices in PySCF's orbital order, from one whose overlap is known.

    Of the length units Å and bohr and the orbital orders of PySCF and ORCA, those are right that give PySCF's overlap.

    Raises:
        DataError: none of them gives the stored overlap.
    """
    from .labels import molecule

    if raw.hamiltonian is None or raw.overlap is None:
        raise DataError("a Hamiltonian with its overlap is needed", where)
    orbitals = layout(basis, sorted(set(raw.numbers.tolist())))
    orders = [np.arange(len(raw.overlap)), orca_order(orbitals, raw.numbers)]
    worst = np.inf
    for unit in (1.0, BOHR):
        exact = molecule(raw.numbers, raw.positions * unit, basis).intor("int1e_ovlp")
        for order in orders:
            if len(exact) != len(raw.overlap):
                raise DataError(f"matrices of {len(raw.overlap)} orbitals, {basis} has {len(exact)}", where)
            error = float(np.abs(raw.overlap[np.ix_(order, order)] - exact).max())
            worst = min(worst, error)
            if error < 1e-4:
                matrix = raw.hamiltonian[np.ix_(order, order)]
                overlap = raw.overlap[np.ix_(order, order)]
                return replace(raw, positions=raw.positions * unit, hamiltonian=matrix, overlap=overlap)
    raise DataError(
        f"{raw.name}: the stored overlap is that of no known unit and orbital order (off by {worst:.1e})", where
    )


def orca_order(orbitals: OrbitalLayout, numbers: np.ndarray) -> np.ndarray:
    """Index ``(n_orbitals,)`` into ORCA's orbitals that puts them into PySCF's order (s, p and d shells)."""
    shells = dict(orbitals.shells)
    order: list[int] = []
    for z in numbers.tolist():
        for l in shells[int(z)]:
            start = len(order)
            order += [start + m for m in _ORCA_ORDER[l]]
    return np.array(order)
