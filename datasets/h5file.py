"""Opening HDF5 files with errors that a user understands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DataError

if TYPE_CHECKING:
    import h5py


def open_hdf5(path: str | Path) -> h5py.File:
    """The file opened for reading, also where the file system knows no locks.

    Raises:
        DataError: absent, no HDF5 file, truncated or otherwise damaged.
    """
    import h5py

    try:
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
            return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise DataError("no such file", str(path)) from None
    except OSError as error:
        raise DataError(_reason(Path(path), str(error)), str(path)) from None


def _reason(path: Path, message: str) -> str:
    if path.is_dir():
        return "this is a folder, an HDF5 file was expected"
    if "truncated" in message:
        detail = message[message.find("eof") :].strip(" )") if "eof" in message else message
        return f"truncated HDF5 file ({detail}): it was copied or written incompletely; copy or make it again"
    if "signature not found" in message:
        return "this is no HDF5 file (or its beginning is damaged)"
    return f"the HDF5 file cannot be opened ({message}); copy or make it again"


def damaged(path: str | Path, dataset: str, error: Exception) -> DataError:
    """The error for a block that cannot be read (checksum, filter, short file)."""
    return DataError(f"damaged data in dataset {dataset!r} ({error}); copy or make the file again", str(path))
