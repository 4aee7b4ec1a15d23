"""Files of any format into one store: streaming, with provenance, resumable after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import DataError
from .keys import KeyMap
from .read import Location, PathLike, iread, locations
from .readers import detect
from .store_writer import StoreWriter
from .units import Units


def convert(
    sources: PathLike | Iterable[PathLike],
    output: str | Path,
    *,
    keys: KeyMap | None = None,
    units: Units | None = None,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = False,
    provenance: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    flush_seconds: float = 30.0,
) -> int:
    """Read `sources` and write them into the store `output`; returns the number of frames written.

    resume: go on with an interrupted run of the same sources, keys and units; the frames that are safe are skipped.
    progress: called with the number of frames done after each frame. provenance: added to what is recorded anyway.

    Raises:
        DataError: as `read` and `StoreWriter`; the output is one of the sources.
    """
    files = locations(sources)
    for location in files:
        if location.path.exists() and Path(output).exists() and location.path.samefile(output):
            raise DataError("the output is one of the sources; choose another name", str(output))
    record = {
        "sources": [_describe(location) for location in files],
        "keys": (keys or KeyMap()).describe(),
        "units": (units or Units()).describe(),
    }
    with StoreWriter(
        output,
        provenance={**record, **(provenance or {})},
        job=json.dumps(record, sort_keys=True),
        overwrite=overwrite,
        append=append,
        resume=resume,
        flush_seconds=flush_seconds,
    ) as writer:
        frames = iread([str(location) for location in files], keys=keys, units=units)
        for frame in islice(frames, writer.n_frames, None):
            writer.append(frame)
            if progress is not None:
                progress(writer.n_frames)
    return writer.n_frames


def _describe(location: Location) -> dict[str, Any]:
    form = detect(location.path)
    stat = location.path.stat()
    return {
        "path": str(location),
        "format": form.name,
        "bytes": stat.st_size,
        "modified": stat.st_mtime_ns,
    }
