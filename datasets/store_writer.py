"""Writing a store so that nothing, `kill -9` included, leaves a damaged file or loses more than one interval.

While a store `OUT.h5` is written, the frames lie in finished parts in the folder `OUT.h5.partial`, each written
to a temporary name and renamed. Closing joins the parts in a temporary file and renames that to `OUT.h5`. An
interrupted job leaves the folder; `resume=True` goes on behind its last part.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .columns import FIXED, Block, axis, missing_value, pack
from .errors import DataError
from .h5file import damaged, open_hdf5
from .structure import LABELS, Structure

if TYPE_CHECKING:
    import h5py

FORMAT = "tesseral-store"
SCHEMA_VERSION = 1
UNITS = {"length": "Å", **{name: spec.unit for name, spec in LABELS.items()}}
CHUNK_BYTES = 1 << 16
COPY_ROWS = 1 << 18


class StoreWriter:
    """Writes frames one at a time into a store; use it in a `with` block.

    path: the store to be. overwrite: replace an existing one. append: continue one. resume: go on with an
    interrupted job (`n_frames` tells how many frames are safe already: skip these). job: any text that
    names the job; only the same job is resumed. provenance: plain JSON, kept in the file.
    A part is finished at the latest after `flush_atoms` atoms or `flush_seconds`.

    Raises:
        DataError: the store exists, or an interrupted job lies there, and nothing says what to do about it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        provenance: dict[str, Any] | None = None,
        job: str = "",
        overwrite: bool = False,
        append: bool = False,
        resume: bool = False,
        flush_atoms: int = 500_000,
        flush_seconds: float = 30.0,
    ) -> None:
        self.path = Path(path)
        self.folder = self.path.with_name(self.path.name + ".partial")
        self.provenance = provenance or {}
        self.flush_atoms, self.flush_seconds = flush_atoms, flush_seconds
        self._append = append
        self._buffer: list[Structure] = []
        self._buffered_atoms = 0
        if self.path.exists() and not (overwrite or append):
            raise DataError("exists: overwrite it (--force), append to it, or choose another name", str(path))
        self._lock = self._claim(job, resume, overwrite)
        self.n_frames = sum(_n_frames(part) for part in self._parts())
        self._last_flush = time.monotonic()

    def _claim(self, job: str, resume: bool, overwrite: bool) -> IO[str]:
        """Make the folder of parts ours; clear what another job left, or check that it is the same."""
        if self.folder.exists() and not (resume or overwrite):
            raise DataError(
                f"an interrupted job left {self.folder.name}: go on (--resume) or start anew (--force)",
                str(self.path),
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(self.folder / "lock", str(self.path))
        record = self.folder / "job.json"
        known = json.loads(record.read_text()) if resume and record.exists() else None
        if known is not None and known["job"] != [job, self._append]:
            lock.close()
            raise DataError(
                f"{self.folder.name} is of another job (other files, keys, units): start anew (--force)",
                str(self.path),
            )
        if known is not None and self.path.exists() and _token(self.path) == known["token"]:
            lock.close()
            shutil.rmtree(self.folder)  # it was interrupted after its last step
            raise DataError("the interrupted job had finished already: there is nothing to resume", str(self.path))
        if not resume:
            for part in self._parts():
                part.unlink()
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        self._token = known["token"] if known else uuid.uuid4().hex
        record.write_text(json.dumps({"job": [job, self._append], "token": self._token}))
        return lock

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.h5"))

    def append(self, structure: Structure) -> None:
        """Add one frame.

        Raises:
            DataError: a label or array whose shape does not fit (when the part is written).
        """
        self._buffer.append(structure)
        self._buffered_atoms += structure.n_atoms
        self.n_frames += 1
        late = time.monotonic() - self._last_flush > self.flush_seconds
        if late or self._buffered_atoms >= self.flush_atoms or len(self._buffer) >= self.flush_atoms:
            self.flush()

    def flush(self) -> None:
        """Finish a part: what was appended until now survives whatever happens."""
        self._last_flush = time.monotonic()
        if not self._buffer:
            return
        block = pack(self._buffer, first=self.n_frames - len(self._buffer))
        target = self.folder / f"part-{len(self._parts()):06d}.h5"
        _write_atomic(target, lambda file: _write_part(file, block))
        self._buffer, self._buffered_atoms = [], 0

    def rewind(self, n_frames: int) -> None:
        """Drop the finished parts behind the first `n_frames` frames of this job (right after opening with resume).

        Raises:
            DataError: no part ends there, so the files are not those of the job.
        """
        parts = self._parts()
        while parts and self.n_frames > n_frames:
            last = parts.pop()
            self.n_frames -= _n_frames(last)
            last.unlink()
        if self.n_frames != n_frames:
            raise DataError(
                f"the interrupted job holds {self.n_frames} frames where {n_frames} are expected: start anew (--force)",
                str(self.path),
            )

    def close(self) -> None:
        """Join all parts into the store and put it in its place.

        Raises:
            DataError: no frame was written at all.
        """
        self.flush()
        parts = self._parts()
        if self._append and self.path.exists():
            parts.insert(0, self.path)
        if not parts:
            self._release(remove=True)
            raise DataError("no frames to write", str(self.path))
        provenance = self._provenance()
        _write_atomic(self.path, lambda file: _join(file, parts, provenance, self._token))
        self._release(remove=True)

    def _provenance(self) -> dict[str, Any]:
        if not (self._append and self.path.exists()):
            return self.provenance
        with open_hdf5(self.path) as file:
            before = json.loads(file["provenance"].asstr()[()])
        return {**self.provenance, "appended_to": before}

    def _release(self, remove: bool) -> None:
        self._lock.close()
        if remove:
            shutil.rmtree(self.folder)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, KeyboardInterrupt):
            self.flush()
            self._release(remove=False)
        else:  # the parts stay for a resume; the frames in the buffer may be what went wrong
            self._release(remove=False)


def write_store(
    path: str | Path,
    structures: Iterable[Structure],
    *,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
    append: bool = False,
) -> int:
    """Write all structures into a store; returns their number."""
    with StoreWriter(path, provenance=provenance, overwrite=overwrite, append=append) as writer:
        for structure in structures:
            writer.append(structure)
    return writer.n_frames


def hash_columns(file: h5py.File, name: str) -> str:
    """SHA-256 over path, type, shape and bytes of every column.

    Raises:
        DataError: a column cannot be read or differs from its own recorded hash.
    """
    total = hashlib.sha256()
    for path in _stored_columns(file):
        digest = hashlib.sha256()
        for rows in _slices(file[path], name):
            digest.update(rows.tobytes())
        if digest.hexdigest() != file[path].attrs["sha256"]:
            raise DataError(f"column {path!r} does not match its checksum: make the store again", name)
        total.update(_signature(file[path], path, digest.hexdigest()))
    return f"sha256:{total.hexdigest()}"


def _signature(dataset: h5py.Dataset, path: str, digest: str) -> bytes:
    return f"{path} {dataset.dtype.str} {dataset.shape} {digest}\n".encode()


def _stored_columns(file: h5py.File) -> list[str]:
    import h5py

    found: list[str] = []
    file.visititems(lambda path, item: found.append(path) if isinstance(item, h5py.Dataset) else None)
    return sorted(path for path in found if path != "provenance")


def _slices(dataset: h5py.Dataset, name: str) -> Iterable[np.ndarray]:
    for start in range(0, len(dataset), COPY_ROWS):
        try:
            yield dataset[start : start + COPY_ROWS]
        except OSError as error:
            raise damaged(name, dataset.name, error) from None


def _write_part(file: h5py.File, block: Block) -> None:
    file.attrs["n_frames"] = len(block["frames/n_atoms"])
    for path, values in block.items():
        file.create_dataset(path, data=values, compression="lzf" if values.size else None)


def _join(file: h5py.File, parts: list[Path], provenance: dict[str, Any], token: str) -> None:
    """Write the store that holds the frames of all parts, one column after another."""
    opened = [open_hdf5(part) for part in parts]
    try:
        rows = [{kind: _rows(part, kind) for kind in ("frames", "atoms", "bonds", "info")} for part in opened]
        columns = {path: part[path] for part in opened for path in _stored_columns(part)}
        total = hashlib.sha256()
        for path in sorted(columns):
            dataset = _create(file, path, columns[path], sum(r[axis(path)] for r in rows))
            digest, start = hashlib.sha256(), 0
            for part, count in zip(opened, rows, strict=True):
                for values in _part_rows(part, path, dataset, count[axis(path)]):
                    dataset[start : start + len(values)] = values
                    digest.update(values.tobytes())
                    start += len(values)
            dataset.attrs["sha256"] = digest.hexdigest()
            total.update(_signature(dataset, path, digest.hexdigest()))
        file.create_dataset("provenance", data=json.dumps(provenance))
        file.attrs["format"] = FORMAT
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["n_frames"] = sum(r["frames"] for r in rows)
        file.attrs["job"] = token
        file.attrs["units"] = json.dumps(UNITS)
        file.attrs["checksum"] = f"sha256:{total.hexdigest()}"
    finally:
        for part in opened:
            part.close()


def _rows(part: h5py.File, kind: str) -> int:
    path = next(path for path in FIXED if axis(path) == kind)
    return len(part[path])


def _part_rows(part: h5py.File, path: str, target: h5py.Dataset, count: int) -> Iterable[np.ndarray]:
    """The rows of a column in one part; the missing value where the part has no such column."""
    if path in part:
        yield from _slices(part[path], part.filename)
        return
    for start in range(0, count, COPY_ROWS):
        shape = (min(COPY_ROWS, count - start), *target.shape[1:])
        yield np.full(shape, missing_value(target.dtype), dtype=target.dtype)


def _create(file: h5py.File, path: str, like: h5py.Dataset, rows: int) -> h5py.Dataset:
    shape = (rows, *like.shape[1:])
    if not rows:
        return file.create_dataset(path, shape, dtype=like.dtype)
    row_bytes = like.dtype.itemsize * int(np.prod(like.shape[1:], dtype=np.int64))
    chunk = min(rows, max(1, CHUNK_BYTES // row_bytes))
    return file.create_dataset(
        path,
        shape,
        dtype=like.dtype,
        chunks=(chunk, *like.shape[1:]),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
        fletcher32=True,
    )


def _write_atomic(target: Path, fill: Any) -> None:
    """Write an HDF5 file under a temporary name, bring it to the disk, then rename it."""
    import h5py

    temporary = target.with_name(target.name + ".tmp")
    try:
        with h5py.File(temporary, "w") as file:
            fill(file)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _token(path: Path) -> str:
    with open_hdf5(path) as file:
        return str(file.attrs.get("job", ""))


def _n_frames(part: Path) -> int:
    with open_hdf5(part) as file:
        return int(file.attrs["n_frames"])


def _locked(path: Path, name: str) -> IO[str]:
    """An exclusive lock that dies with its process (none where the system has no flock)."""
    handle = path.open("w")
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return handle
    except OSError:
        handle.close()
        raise DataError("another process is writing this store", name) from None
    return handle
