"""Extended XYZ (.xyz, .extxyz, each also .gz): the exchange format of the field, parsed here.

Layout: number of atoms; a comment of key=value pairs with `Lattice` and `Properties`; one line per atom.
Plain XYZ (a free comment and four columns) is read too. Format: https://github.com/libAtoms/extxyz
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import codec
from ..elements import symbols_to_numbers
from ..errors import DataError
from ..keys import Labeller
from ..structure import Structure

# key=value with value "…", {…}, […] or bare; a bare key is a flag. Escaped quotes may stand inside quotes.
PAIR = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*"|[^\s=]+)\s*
    (?:=\s*(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'
        |\{[^{}]*\}(?=\s|$)|\[[^\]]*\](?:\s*,\s*\[[^\]]*\])*\]?(?=\s|$)|[^\s"]+))?""",
    re.VERBOSE,
)
ARRAY_KEY = "array:"  # before the name of a per-atom array that does not fit into columns
BOOLEANS = {word: word[0] in "Tt" for word in ("T", "True", "TRUE", "true", "F", "False", "FALSE", "false")}


def open_binary(path: Path) -> IO[bytes]:
    """The file opened for reading bytes, decompressed where it ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def read(path: Path, labeller: Labeller) -> Iterator[Structure]:
    """The labelled frames of a file, one at a time.

    Raises:
        DataError: what cannot be parsed, with file and frame; a truncated .gz or last frame.
    """
    with open_binary(path) as handle:
        number = 0
        while True:
            where = f"{labeller.source}, frame {number}"
            lines = read_lines(handle, where)
            if lines is None:
                return
            yield labeller(parse_frame(lines, where), where)
            number += 1


def read_lines(handle: IO[bytes], where: str) -> list[bytes] | None:
    """The lines of the next frame (count, comment, atoms), None at the end of the file."""
    try:
        first = handle.readline()
        while first and not first.strip():
            first = handle.readline()
        if not first:
            return None
        n_atoms = parse_count(first, where)
        lines = [first, handle.readline(), *(handle.readline() for _ in range(n_atoms))]
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"the compressed file is damaged or truncated ({error}); copy it again", where) from None
    if not lines[-1].strip() and n_atoms:
        raise DataError(f"the file ends inside the frame ({n_atoms} atoms announced); cut off the frame", where)
    return lines


def parse_count(line: bytes, where: str) -> int:
    """The number of atoms on the first line of a frame."""
    try:
        count = int(line)
    except ValueError:
        count = -1
    if count < 0:
        text = line.decode(errors="replace").strip()
        raise DataError(f"expected the number of atoms, found {text!r:.60}; is this extended XYZ?", where)
    return count


def parse_frame(lines: list[bytes], where: str) -> Structure:
    """One frame from its lines; all keys and columns other than the geometry go to `info` and `arrays`.

    Raises:
        DataError: wrong column counts, unknown elements, values that are no numbers.
    """
    info = parse_comment(lines[1].decode("utf-8", errors="replace").strip())
    columns = _columns(info.pop("Properties", None), lines, where)
    arrays = _parse_atoms(lines[2:], columns, where)
    numbers = _numbers(arrays, where)
    if "pos" not in arrays:
        raise DataError("Properties names no column 'pos' (positions)", where)
    cell = np.zeros((3, 3))
    if "Lattice" in info:
        lattice = np.asarray(info.pop("Lattice"))
        if lattice.size != 9 or lattice.dtype.kind not in "if":
            raise DataError(f"Lattice needs nine numbers, found {lattice.tolist()}", where)
        cell = lattice.astype(np.float64).reshape(3, 3)
    pbc = info.pop("pbc", None)
    if pbc is None:
        pbc = np.full(3, bool(cell.any()))  # the convention of the format: a lattice alone means periodic
    elif np.size(pbc) not in (1, 3):
        raise DataError(f"pbc needs three flags, found {pbc!r}", where)
    positions = arrays.pop("pos")
    bonds = info.pop("bonds", None)
    for key in [key for key in info if key.startswith(ARRAY_KEY)]:
        arrays[key.removeprefix(ARRAY_KEY)] = np.asarray(info.pop(key))
    try:
        return Structure(numbers, positions, cell, pbc, bonds=bonds, arrays=arrays, info=info)
    except DataError as error:
        raise DataError(str(error), where) from None


def _columns(properties: Any, lines: list[bytes], where: str) -> list[tuple[str, str, int]]:
    """(name, kind, width) of each group of columns."""
    if properties is None:
        width = len(lines[2].split()) if len(lines) > 2 else 4
        if width < 4:
            raise DataError(f"the atom lines have {width} columns, expected element x y z", where)
        extra = [("columns", "R", width - 4)] if width > 4 else []
        return [("species", "S", 1), ("pos", "R", 3), *extra]
    parts = str(properties).split(":")
    try:
        groups = [(parts[i], parts[i + 1].upper(), int(parts[i + 2])) for i in range(0, len(parts), 3)]
    except (IndexError, ValueError):
        raise DataError(f"cannot read Properties={properties}; expected name:kind:width:…", where) from None
    for name, kind, _ in groups:
        if kind not in "SRIL":
            raise DataError(f"Properties: column {name!r} has kind {kind!r}, known are S, R, I, L", where)
    return groups


def _parse_atoms(lines: list[bytes], columns: list[tuple[str, str, int]], where: str) -> dict[str, np.ndarray]:
    width = sum(group[2] for group in columns)
    rows = [line.split() for line in lines]
    for atom, row in enumerate(rows):
        if len(row) != width:
            raise DataError(f"atom {atom} has {len(row)} columns, Properties announces {width}", where)
    flat = list(chain.from_iterable(rows))
    if columns[0][2] == 1 and all(kind == "R" for _, kind, _ in columns[1:]) and width > 1:
        return _species_and_reals(flat, columns, width, where)
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for name, kind, group in columns:
        if group == 1:
            arrays[name] = _convert(flat[start::width], kind, name, where)
        else:
            tokens = list(chain.from_iterable(row[start : start + group] for row in rows))
            arrays[name] = _convert(tokens, kind, name, where).reshape(len(rows), group)
        start += group
    return arrays


def _species_and_reals(
    flat: list[bytes], columns: list[tuple[str, str, int]], width: int, where: str
) -> dict[str, np.ndarray]:
    """The usual case, one column and then only reals, converted in one go (three times as fast)."""
    name, kind, _ = columns[0]
    arrays = {name: _convert(flat[::width], kind, name, where)}
    del flat[::width]
    names = "/".join(column[0] for column in columns[1:])
    table = _convert(flat, "R", names, where).reshape(-1, width - 1)
    start = 0
    for name, _, group in columns[1:]:
        arrays[name] = table[:, start].copy() if group == 1 else table[:, start : start + group].copy()
        start += group
    return arrays


def _convert(tokens: list[bytes], kind: str, name: str, where: str) -> np.ndarray:
    try:
        if kind == "R":
            return np.array(list(map(float, tokens)), dtype=np.float64)
        if kind == "I":
            return np.array(list(map(int, tokens)), dtype=np.int64)
    except ValueError:
        if kind == "R" and any(b"D" in token.upper() for token in tokens):  # Fortran's double: 1.0D-03
            return _convert([token.upper().replace(b"D", b"E") for token in tokens], "R", name, where)
        raise DataError(f"column {name!r} holds a value that is no number", where) from None
    if kind == "L":
        return np.array([BOOLEANS.get(token.decode(), False) for token in tokens], dtype=bool)
    return np.array([token.decode("utf-8", errors="replace") for token in tokens], dtype=str)


def _numbers(arrays: dict[str, np.ndarray], where: str) -> np.ndarray:
    for name in ("species", "element", "symbols", "Z", "numbers"):
        if name in arrays:
            values = arrays.pop(name)
            if values.dtype.kind in "if":
                return values.astype(np.int64)
            if len(values) and all(value.isdigit() for value in values[:1]):
                return values.astype(np.int64)
            numbers = symbols_to_numbers(values.tolist(), where)
            # The column of atomic numbers says nothing new beside the species (an ASE habit).
            if "Z" in arrays and np.array_equal(arrays["Z"], numbers):
                del arrays["Z"]
            return numbers
    raise DataError("Properties names no column of elements (species or Z)", where)


def parse_comment(text: str) -> dict[str, Any]:
    """The key=value pairs of a comment line; a line without any becomes {"comment": text}."""
    if "=" not in text:
        return {"comment": text} if text else {}
    info: dict[str, Any] = {}
    for match in PAIR.finditer(text):
        key, value = match.group("key"), match.group("value")
        key = _unquote(key)
        if value is None:
            info[key] = True
        elif key == "Properties":
            info[key] = _unquote(value)
        else:
            info[key] = parse_value(value)
    return info


def _unquote(text: str) -> str:
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        return re.sub(r"\\(.)", lambda m: "\n" if m.group(1) == "n" else m.group(1), text[1:-1])
    return text


def parse_value(text: str) -> Any:
    """A number, a flag, an array of them, JSON after `_JSON`, or the text itself."""
    inner = _unquote(text)
    if inner.startswith("_JSON"):
        try:
            return codec.decode(inner[5:])
        except DataError:
            return inner
    if inner[:1] == "{" and inner[-1:] == "}":
        inner = inner[1:-1]
    elif inner[:1] == "[" and inner[-1:] == "]":
        return _bracketed(inner)
    words = inner.split()
    if not words:
        return inner
    values = _scalars(words)
    if values is None:
        return inner
    return values[0] if len(values) == 1 else np.array(values)


def _bracketed(text: str) -> Any:
    try:
        nested = json.loads(text)
    except ValueError:
        return text
    try:
        array = np.array(nested)
    except ValueError:
        return nested
    return array if array.dtype.kind in "ifb" else nested


def _scalars(words: list[str]) -> list[Any] | None:
    """All words as integers, else as floats, else as flags; None if they are text."""
    for convert in (int, float):
        try:
            return [convert(word) for word in words]
        except ValueError:
            continue
    if all(word in BOOLEANS for word in words):
        return [BOOLEANS[word] for word in words]
    return None
