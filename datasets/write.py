"""`write`: structures to a store, extended XYZ, an SD file, or what ASE writes; chosen by the suffix."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import codec
from .errors import DataError
from .readers.extxyz import ARRAY_KEY, parse_value
from .structure import LABELS, Structure

KINDS = {"f": "R", "i": "I", "u": "I", "b": "L", "U": "S"}


def write(path: str | Path, structures: Iterable[Structure] | Structure, *, overwrite: bool = False) -> int:
    """Write structures; returns their number. The file appears complete or not at all.

    Suffixes: .h5/.hdf5 (store), .xyz/.extxyz (also .gz), .sdf; others as ASE knows them (.cif, POSCAR, .traj …).

    Raises:
        DataError: the file exists and `overwrite` is False; the format cannot be written.
    """
    target = Path(path)
    frames = [structures] if isinstance(structures, Structure) else structures
    if target.exists() and not overwrite:
        raise DataError("exists: overwrite it (--force) or choose another name", str(path))
    name = target.name.lower().removesuffix(".gz")
    if name.endswith((".h5", ".hdf5")):
        from .store_writer import write_store

        return write_store(target, frames, overwrite=overwrite)
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        if name.endswith((".xyz", ".extxyz")):
            count = _write_extxyz(temporary, frames)
        elif name.endswith((".sdf", ".sd")):
            count = _write_sdf(temporary, frames)
        else:
            count = _write_ase(temporary, frames, target)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def extxyz_frame(structure: Structure) -> str:
    """One frame as extended XYZ text; every value reads back bit by bit."""
    columns: list[tuple[str, np.ndarray]] = [("pos", structure.positions)]
    info: dict[str, Any] = {}
    for key, value in structure.labels.items():
        if LABELS[key].per_atom:
            columns.append((key, value))
        else:
            info[key] = value
    for key, value in structure.arrays.items():
        if value.dtype.kind in KINDS and value.ndim <= 2 and not re.search(r"[:\s=]", key) and _spaceless(value):
            columns.append((key, value))
        else:
            info[ARRAY_KEY + key] = value
    physical = {"charge": structure.charge, "spin": structure.spin, "bonds": structure.bonds}
    info.update({key: item for key, item in physical.items() if item is not None})
    info.update(structure.info)
    properties = ":".join(["species:S:1", *(f"{k}:{KINDS[v.dtype.kind]}:{_width(v)}" for k, v in columns)])
    head = [f'Lattice="{_numbers(structure.cell)}"'] if structure.cell.any() else []
    head += [f"Properties={properties}"]
    head += [f"{_quoted(key)}={_value(value)}" for key, value in info.items()]
    head += ['pbc="' + " ".join("FT"[int(axis)] for axis in structure.pbc) + '"']
    fields = [_texts(value) for _, value in columns]
    rows = (" ".join([symbol, *chain]) for symbol, *chain in zip(structure.symbols, *fields, strict=True))
    return "\n".join([str(structure.n_atoms), " ".join(head), *rows]) + "\n"


def _width(value: np.ndarray) -> int:
    return 1 if value.ndim == 1 else value.shape[1]


def _spaceless(value: np.ndarray) -> bool:
    return value.dtype.kind != "U" or all(item and not re.search(r"\s", item) for item in value.ravel().tolist())


def _texts(value: np.ndarray) -> Iterator[str]:
    """One text per atom; repr of a float is the shortest that reads back the same."""
    rows = value.reshape(len(value), -1)
    if value.dtype.kind == "b":
        rows = np.where(rows, "T", "F")
    convert = repr if value.dtype.kind == "f" else str
    for row in rows.tolist():
        yield " ".join(map(convert, row))


def _numbers(value: np.ndarray) -> str:
    return " ".join(map(repr, np.ravel(value).tolist()))


def _quoted(text: str) -> str:
    if re.fullmatch(r"[^\s=\"'{}\[\],\\]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _value(value: Any) -> str:
    """A value such that `readers.extxyz.parse_value` gives it back; JSON where the plain form would not."""
    if isinstance(value, bool | np.bool_):
        return "FT"[int(value)]
    if isinstance(value, int | float | np.integer | np.floating) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return repr(np.asarray(value).item())
    if isinstance(value, np.ndarray) and value.dtype.kind in "if" and value.ndim == 1 and value.size > 1:
        return f'"{_numbers(value)}"'
    if isinstance(value, str):
        if parse_value(_quoted(value)) == value and not value.startswith("_JSON"):
            return _quoted(value)
    return _quoted("_JSON " + codec.encode(codec.plain(value)))


def _write_extxyz(path: Path, frames: Iterable[Structure]) -> int:
    count = 0
    opened: IO[Any] = gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb")  # type: ignore[assignment]
    with opened as handle:
        for structure in frames:
            handle.write(extxyz_frame(structure).encode())
            count += 1
    return count


def _write_sdf(path: Path, frames: Iterable[Structure]) -> int:
    from rdkit import Chem

    count = 0
    with Chem.SDWriter(str(path)) as writer:
        for structure in frames:
            mol = structure.to_rdkit(sanitize=False)
            if mol.GetConformer().Is3D():
                _state_double_bonds(mol)
            writer.SetKekulize(_has_kekule_form(mol))
            writer.write(mol)
            count += 1
    return count


def _state_double_bonds(mol: Any) -> None:
    """Cis or trans from the coordinates: a double bond without it would be written as "either"."""
    from rdkit import Chem

    Chem.FastFindRings(mol)
    Chem.AssignStereochemistryFrom3D(mol)
    for atom in mol.GetAtoms():  # the coordinates say it; wedges would turn bonds around
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)


def _has_kekule_form(mol: Any) -> bool:
    """Whether aromatic bonds can be written as single and double ones; else they are written as they are."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        try:
            Chem.Kekulize(Chem.Mol(mol))
        except ValueError:
            return False
    return True


def _write_ase(path: Path, frames: Iterable[Structure], target: Path) -> int:
    import ase.io
    from ase.io.formats import UnknownFileTypeError, filetype

    atoms = [structure.to_ase() for structure in frames]
    try:
        form = filetype(str(target), read=False)
        ase.io.write(path, atoms if len(atoms) > 1 else atoms[0], format=form)
    except (UnknownFileTypeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"ASE cannot write this ({error}); use .extxyz or .h5", str(target)) from None
    return len(atoms)
