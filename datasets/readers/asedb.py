"""ASE databases (.db of SQLite, .json): rows with key-value pairs and data, in eV and Å."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..convert import raw_from_ase
from ..errors import DataError
from ..keys import Labeller
from ..structure import Structure
from .ase import unpacked


def read(path: Path, labeller: Labeller) -> Iterator[Structure]:
    """The labelled frames in the order of their ids; key-value pairs and data go to `info`.

    Raises:
        DataError: no ASE database, or a damaged one.
    """
    from ase.db import connect

    with unpacked(path) as plain:
        try:
            with connect(plain, type="json" if plain.suffix == ".json" else "db") as database:
                for number, row in enumerate(database.select(sort="id")):
                    frame = raw_from_ase(row.toatoms())
                    frame.info.update(row.key_value_pairs)
                    frame.info.update(row.data)
                    yield labeller(frame, f"{labeller.source}, frame {number} (id {row.id})")
        except DataError:
            raise
        except Exception as error:  # sqlite3, json and ASE raise their own kinds on damaged files
            raise DataError(f"cannot be read as an ASE database ({error})", str(path)) from error
