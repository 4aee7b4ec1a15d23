"""Trajectory files that can be rewound: extended XYZ, ASE's .traj, and the package's HDF5 store.

A writer appends frames; `mark()` puts what was written on the disk and says where the file ends; opening a
file again with that mark drops whatever was written later, so that a resumed run repeats no frame and loses
none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..datasets.errors import UserError

if TYPE_CHECKING:
    from ase import Atoms


class Trajectory(Protocol):
    """A trajectory file that is open for appending."""

    def write(self, frame: Atoms) -> None:
        """Append one frame with the results of its calculator."""

    def mark(self) -> int:
        """Put all frames on the disk; returns the position to give to `open_trajectory` when resuming."""

    def close(self) -> None:
        """Finish the file."""


def open_trajectory(path: Path, mark: int | None = None) -> Trajectory:
    """Open a trajectory for appending; the format follows the name. What lies beyond `mark` is dropped.

    Raises UserError for a name that tells no format, or a file that is shorter than the mark.
    """
    return _format(path)(path, mark or 0)


def _format(path: Path) -> Callable[[Path, int], Trajectory]:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: the name of a trajectory must end in one of {', '.join(FORMATS)}")
    return kind


def check_format(path: Path) -> None:
    """Raise UserError when the name of the file tells no trajectory format."""
    _format(path)


def truncate(path: Path, size: int) -> None:
    """Cut a file to `size` bytes (absent counts as empty). Raises UserError when it is shorter."""
    present = path.stat().st_size if path.exists() else 0
    if present < size:
        raise UserError(
            f"{path} holds {present} bytes, the saved state expects at least {size}: the file was changed or "
            "moved; restore it, or start anew with --force"
        )
    if present > size:
        os.truncate(path, size)


class ExtxyzTrajectory:
    """Extended XYZ; a frame reaches the file in one piece."""

    def __init__(self, path: Path, mark: int) -> None:
        truncate(path, mark)
        self._file = path.open("ab")

    def write(self, frame: Atoms) -> None:
        """Append one frame."""
        from ase.io.extxyz import write_xyz

        text = io.StringIO()
        write_xyz(text, [frame])
        self._file.write(text.getvalue().encode())
        self._file.flush()

    def mark(self) -> int:
        """Size in bytes, after a sync."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class AseTrajectory:
    """ASE's .traj; its index is updated after a frame is complete."""

    def __init__(self, path: Path, mark: int) -> None:
        from ase.io.trajectory import TrajectoryWriter

        self.path = path
        self._n_frames = mark
        _keep_frames(path, mark)
        self._writer = TrajectoryWriter(str(path), mode="a")

    def write(self, frame: Atoms) -> None:
        """Append one frame."""
        self._writer.write(frame)
        self._n_frames += 1

    def mark(self) -> int:
        """Number of frames, after a sync."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self._n_frames

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _keep_frames(path: Path, count: int) -> None:
    """Leave the first `count` frames of a .traj file, writing a new one when there are more."""
    from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

    if count == 0:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with TrajectoryReader(str(path)) as old:
        if len(old) < count:
            raise UserError(
                f"{path} holds {len(old)} frames, the saved state expects at least {count}: the file was "
                "changed; restore it, or start anew with --force"
            )
        if len(old) == count:
            return
        with TrajectoryWriter(str(temporary), mode="w") as new:
            for i in range(count):
                new.write(old[i])
    os.replace(temporary, path)


class StoreTrajectory:
    """The package's HDF5 store; frames lie in parts beside it (`run.h5.partial`) until the run ends."""

    def __init__(self, path: Path, mark: int) -> None:
        from ..datasets.store import Store
        from ..datasets.store_writer import StoreWriter, write_store

        options: dict[str, Any] = {"provenance": {"written by": "tesseral md"}, "flush_seconds": float("inf")}
        joined = len(Store(path)) if mark and path.exists() else 0
        if joined > mark:  # frames recorded after the last saved state of a run that was then closed
            write_store(path, Store(path)[:mark], overwrite=True)
        self._before = min(joined, mark)
        if self._before == mark:  # nothing to take over from parts; what lies there is left over
            self._writer = StoreWriter(path, append=mark > 0, overwrite=True, **options)
        else:
            self._writer = StoreWriter(path, append=joined > 0, resume=True, **options)
            self._writer.rewind(mark - joined)

    def write(self, frame: Atoms) -> None:
        """Append one frame."""
        from ..datasets.structure import Structure

        self._writer.append(Structure.from_ase(frame))

    def mark(self) -> int:
        """Number of frames, all in finished parts."""
        self._writer.flush()
        return self._before + self._writer.n_frames

    def close(self) -> None:
        """Join the parts into the store."""
        self._writer.close()


FORMATS: dict[str, Callable[[Path, int], Trajectory]] = {
    ".extxyz": ExtxyzTrajectory,
    ".xyz": ExtxyzTrajectory,
    ".traj": AseTrajectory,
    ".h5": StoreTrajectory,
    ".hdf5": StoreTrajectory,
}
