"""`read`, `iread`, `open_source`: any file of structures as a list, a stream or a random-access source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .errors import DataError
from .keys import KeyMap, Labeller
from .readers import Format, detect
from .source import Concatenated, MemorySource, Source
from .structure import Structure
from .units import Units

PathLike = str | Path
IN_MEMORY_GZ = 32 << 20  # bytes; a larger .gz is unpacked into the cache and read from there


class Location(NamedTuple):
    """A file and the group inside it (after "::", for HDF5)."""

    path: Path
    group: str = ""

    @classmethod
    def parse(cls, text: PathLike) -> Location:
        """From "file.h5::group/sub" or a plain path."""
        path, _, group = str(text).partition("::")
        return cls(Path(path).expanduser(), group.strip("/"))

    def __str__(self) -> str:
        return f"{self.path}::{self.group}" if self.group else str(self.path)


def read(
    path: PathLike | Iterable[PathLike],
    *,
    keys: KeyMap | None = None,
    units: Units | None = None,
    index: str | int | slice = ":",
) -> list[Structure]:
    """All frames of one or more files (`index` as in ASE: ":", "::10", "-1", 3 chooses among them all).

    keys: names of the labels where the guess would not do. units: of the file where not the format's own.

    Raises:
        DataError: the file, a frame or a label cannot be read; the message names file, frame and field.
    """
    chosen = parse_index(index)
    simple = all(v is None or v >= 0 for v in (chosen.start, chosen.stop)) and (chosen.step or 1) > 0
    frames = iread(path, keys=keys, units=units)
    if simple:
        return list(islice(frames, chosen.start, chosen.stop, chosen.step))
    return list(frames)[chosen]


def iread(
    path: PathLike | Iterable[PathLike], *, keys: KeyMap | None = None, units: Units | None = None
) -> Iterator[Structure]:
    """The frames of one or more files, one at a time, without holding the files in memory."""
    for location in locations(path):
        form = detect(location.path)
        labeller = _labeller(form, location, keys, units)
        seen: set[str] = set()
        labels: set[str] = set()
        for frame in _frames(form, location, labeller):
            labels.update(frame.labels)
            if labeller.keys != KeyMap():
                seen.update(frame.info, frame.arrays)
            yield frame
        labeller.check_found(seen, labels)


def open_source(
    path: PathLike | Iterable[PathLike], *, keys: KeyMap | None = None, units: Units | None = None
) -> Source:
    """A random-access source over one or more files.

    Our HDF5 store, extended XYZ and LMDB are read where they lie (data larger than memory is fine); other
    formats are read into memory.

    Raises:
        DataError: as `read`; also if there is no frame at all.
    """
    parts = [_open_one(location, keys, units) for location in locations(path)]
    source = parts[0] if len(parts) == 1 else Concatenated(parts)
    if not len(source):
        raise DataError("no frames in it", source.name)
    return source


def _open_one(location: Location, keys: KeyMap | None, units: Units | None) -> Source:
    form = detect(location.path)
    labeller = _labeller(form, location, keys, units)
    if form.name == "extxyz":
        packed = location.path.suffix == ".gz"
        if not packed or location.path.stat().st_size > IN_MEMORY_GZ:
            from .indexed import IndexedExtxyz

            return IndexedExtxyz(location.path, labeller)
    if form.name == "hdf5" and not location.group:
        from .store import Store, is_store

        if is_store(location.path):
            return Store(location.path)
    if form.name == "lmdb":
        from .readers.lmdb import LmdbSource

        return LmdbSource(location.path, labeller)
    return MemorySource(list(iread(str(location), keys=keys, units=units)), str(location))


def _labeller(form: Format, location: Location, keys: KeyMap | None, units: Units | None) -> Labeller:
    return Labeller(keys, (units or Units()).merged(form.units), str(location))


def _frames(form: Format, location: Location, labeller: Labeller) -> Iterator[Structure]:
    reader = form.load()
    if form.name == "hdf5":
        yield from reader.read(location.path, labeller, location.group)
    elif location.group:
        raise DataError(f"a group ('::{location.group}') can be chosen in HDF5 files only", str(location.path))
    else:
        yield from reader.read(location.path, labeller)


def locations(path: PathLike | Iterable[PathLike]) -> list[Location]:
    """The files named by one path or several.

    Raises:
        DataError: an empty list.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise DataError("no data file was named")
    return [Location.parse(item) for item in paths]


def parse_index(index: str | int | slice) -> slice:
    """The slice that "3", "-1", "::10" or "5:20" mean.

    Raises:
        DataError: anything else.
    """
    if isinstance(index, slice):
        return index
    try:
        parts = [int(part) if part.strip() else None for part in str(index).split(":")]
    except ValueError:
        parts = []
    if len(parts) == 1 and parts[0] is not None:
        number = parts[0]
        return slice(number, number + 1 if number != -1 else None)
    if len(parts) not in (2, 3):
        raise DataError(f"index {index!r}: write a frame number or START:STOP:STEP, e.g. ':', '-1', '::10'")
    return slice(*parts)
