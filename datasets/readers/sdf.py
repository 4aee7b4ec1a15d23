"""SD and mol files by RDKit: coordinates, bonds, formal charges and data fields, as the file states them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from ..convert_rdkit import from_rdkit
from ..errors import DataError
from ..keys import Labeller
from ..structure import Structure


def read(path: Path, labeller: Labeller) -> Iterator[Structure]:
    """The frames; nothing is sanitised or kekulised, hydrogens stay as written.

    Raises:
        DataError: a record that RDKit cannot parse, with its number.
    """
    from rdkit import Chem, rdBase

    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
        stream = cast(IO[bytes], handle)
        with rdBase.BlockLogs():  # what matters is raised below
            for number, mol in enumerate(Chem.ForwardSDMolSupplier(stream, sanitize=False, removeHs=False)):
                where = f"{labeller.source}, frame {number}"
                if mol is None:
                    raise DataError("RDKit cannot parse this record of the SD file", where)
                mol.UpdatePropertyCache(strict=False)
                yield labeller(from_rdkit(mol, where=where), where)
