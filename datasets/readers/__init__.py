"""One table of the formats we read: how each is recognised and which module reads it.

A reader module has `read(path, labeller) -> Iterator[Structure]` (HDF5: and a group, the text after "::").
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ..errors import DataError
from ..units import Units

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
LMDB_MAGIC = b"\xde\xc0\xef\xbe"
PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
PICKLED_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt")
HEAD = 4096


@dataclass(frozen=True)
class Format:
    """One file format. names: patterns of the lower-case file name without .gz; sniff: by the first bytes."""

    name: str
    module: str
    description: str
    names: tuple[str, ...]
    sniff: Callable[[bytes], bool] | None = None
    units: Units = field(default_factory=Units)

    def load(self) -> ModuleType:
        """The reader module."""
        return import_module(f".{self.module}", __name__)


def _first_line_is_count(head: bytes) -> bool:
    return head.lstrip().split(b"\n", 1)[0].strip().isdigit() and b"\x00" not in head


FORMATS: tuple[Format, ...] = (
    Format("hdf5", "hdf5", "our store; ANI, SPICE, MACE and array layouts", ("*.h5", "*.hdf5"),
           lambda head: head.startswith(HDF5_MAGIC)),
    Format("ase-db", "asedb", "ASE database (.db, .json)", ("*.db",),
           lambda head: head.startswith(b"SQLite format 3\x00")),
    Format("lmdb", "lmdb", "fairchem .aselmdb, one file or a folder", ("*.aselmdb", "*.lmdb"),
           lambda head: head[16:20] == LMDB_MAGIC),
    Format("npz", "npz", "rMD17 and sGDML arrays", ("*.npz",), None),
    Format("sdf", "sdf", "MDL mol and SD files", ("*.sdf", "*.sd", "*.mol")),
    Format("ase-json", "asedb", "ASE database (.json)", ("*.json",), lambda head: head.startswith(b'{"1":')),
    Format("cif", "ase", "CIF, one block or many", ("*.cif",)),
    Format("extxyz", "extxyz", "extended XYZ", ("*.xyz", "*.extxyz"), _first_line_is_count),
    Format("ase", "ase", "what ASE reads (POSCAR, OUTCAR, vasprun.xml, traj, …)", ("*",)),
)  # fmt: skip
__all__ = ["FORMATS", "Format", "detect"]


def detect(path: Path) -> Format:
    """The format of a file, by its first bytes where they tell, else by its name.

    Raises:
        DataError: the file is absent, empty, or pickled (never opened: unpickling executes code).
    """
    if not path.exists():
        raise DataError("no such file", str(path))
    name = path.name.lower().removesuffix(".gz")
    if path.is_dir():
        if any(path.glob("*.aselmdb")) or any(path.glob("*.lmdb")) or (path / "data.mdb").exists():
            return _named("lmdb")
        raise DataError("this is a folder; name a file, or a folder of .aselmdb files", str(path))
    head = _head(path)
    if not head:
        raise DataError("the file is empty", str(path))
    if head.startswith(PICKLE_MAGIC) or name.endswith(PICKLED_SUFFIXES):
        raise DataError(
            "a pickled file is never opened, since that would execute code from it; "
            "convert it where it was made, e.g. with ase.io.write('out.extxyz', frames)",
            str(path),
        )
    for entry in FORMATS:
        if entry.sniff is not None and entry.sniff(head):
            return entry
    for entry in FORMATS:
        if any(fnmatch(name, pattern) for pattern in entry.names):
            return entry
    raise AssertionError("the last format takes every name")


def _named(name: str) -> Format:
    return next(entry for entry in FORMATS if entry.name == name)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            head = handle.read(HEAD)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path, "rb") as packed:
                return packed.read(HEAD)
        return head
    except (EOFError, zlib.error) as error:
        raise DataError(f"the compressed file is damaged or truncated ({error}); copy it again", str(path)) from None
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror or error}", str(path)) from None
