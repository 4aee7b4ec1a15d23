"""A large extended XYZ file as a random-access source: frames are found once, then read where they lie.

The index (byte offset and number of atoms of each frame) lies in the user's cache folder and is renewed when
size or time of the file change. A .gz file cannot be entered in the middle: it is unpacked once into that
cache.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import DataError
from .keys import Labeller
from .readers.extxyz import parse_count, parse_frame
from .source import Source
from .structure import Structure

INDEX_VERSION = 1
WORTH_CACHING = 16 << 20  # bytes; smaller files are scanned in a moment


def cache_folder() -> Path:
    """`$TESSERAL_CACHE`, or tesseral/ in the user's cache folder."""
    base = os.environ.get("TESSERAL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tesseral"


class IndexedExtxyz(Source):
    """The frames of one extended XYZ file, read on demand.

    Raises:
        DataError: the file is no extended XYZ or is truncated, or a frame cannot be parsed.
    """

    def __init__(self, path: str | Path, labeller: Labeller | None = None) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._labeller = labeller or Labeller(source=self.name)
        self._plain = _unpacked(self.path) if self.path.suffix == ".gz" else self.path
        self._offsets, self._n_atoms = load_index(self._plain, self.name)
        self._handle: IO[bytes] | None = None
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of every frame."""
        return self._n_atoms

    def _bytes(self, start: int, stop: int) -> bytes:
        if self._handle is None or self._pid != os.getpid():  # a forked worker must not share the file position
            self._handle, self._pid = self._plain.open("rb"), os.getpid()
        self._handle.seek(int(self._offsets[start]))
        return self._handle.read(int(self._offsets[stop] - self._offsets[start]))

    def frame(self, index: int) -> Structure:
        """Read and parse one frame."""
        return self.frames(index, index + 1)[0]

    def frames(self, start: int, stop: int) -> list[Structure]:
        """Read consecutive frames with one access to the file."""
        if stop <= start:
            return []
        lines = self._bytes(start, stop).split(b"\n")
        frames, cursor = [], 0
        for index in range(start, stop):
            while not lines[cursor].strip():
                cursor += 1
            end = cursor + int(self._n_atoms[index]) + 2
            where = self.where(index)
            frames.append(self._labeller(parse_frame(lines[cursor:end], where), where))
            cursor = end
        return frames


def load_index(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Offsets `(n + 1,)` and atom counts `(n,)`, from the cache or one pass over the file."""
    stat = path.stat()
    if stat.st_size < WORTH_CACHING:
        return scan(path, name)
    stamp = np.array([INDEX_VERSION, stat.st_size, stat.st_mtime_ns], dtype=np.int64)
    cached = cache_folder() / f"{_digest(path)}.index.npz"
    try:
        with np.load(cached, allow_pickle=False) as data:
            if np.array_equal(data["stamp"], stamp):
                return data["offsets"], data["n_atoms"]
    except (OSError, ValueError, KeyError, EOFError):
        pass  # absent or damaged: it is made again
    offsets, n_atoms = scan(path, name)
    _save(cached, stamp, offsets, n_atoms)
    return offsets, n_atoms


def scan(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Find the frames in one pass: offsets `(n + 1,)` (the last is the end) and atom counts `(n,)`.

    Raises:
        DataError: a count line is no number or the last frame is cut short.
    """
    offsets: list[int] = []
    counts: list[int] = []
    position = 0
    with path.open("rb", buffering=1 << 20) as handle:
        for line in handle:
            if not line.strip():
                position += len(line)
                continue
            where = f"{name}, frame {len(counts)}"
            n_atoms = parse_count(line, where)
            offsets.append(position)
            counts.append(n_atoms)
            position += len(line)
            last = b""
            for _ in range(n_atoms + 1):
                last = handle.readline()
                position += len(last)
            if n_atoms and not last.strip():
                raise DataError(f"the file ends inside the frame ({n_atoms} atoms announced); cut off the frame", where)
    return np.array([*offsets, position], dtype=np.int64), np.array(counts, dtype=np.int64)


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]


def _save(cached: Path, stamp: np.ndarray, offsets: np.ndarray, n_atoms: np.ndarray) -> None:
    """Write the index if the cache can be written; without it the file is scanned again next time."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as handle:
            np.savez(handle, stamp=stamp, offsets=offsets, n_atoms=n_atoms)
        os.replace(handle.name, cached)
    except OSError:
        return


def _unpacked(path: Path) -> Path:
    """The decompressed copy of a .gz file in the cache, made if absent or older than the file."""
    stat = path.stat()
    folder = cache_folder()
    target = folder / f"{_digest(path)}-{stat.st_size}-{stat.st_mtime_ns}.xyz"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{_digest(path)}-*.xyz"):
            stale.unlink(missing_ok=True)
        with gzip.open(path, "rb") as packed, tempfile.NamedTemporaryFile(dir=folder, delete=False) as handle:
            shutil.copyfileobj(packed, handle, 1 << 20)
        os.replace(handle.name, target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        Path(handle.name).unlink(missing_ok=True)
        raise DataError(f"the compressed file is damaged or truncated ({error}); copy it again", str(path)) from None
    except OSError as error:
        raise DataError(
            f"cannot unpack into the cache {folder} ({error}); set TESSERAL_CACHE or unpack the file",
            str(path),
        ) from None
    return target
