"""NumPy archives of one molecule: rMD17 (nuclear_charges, coords, energies, forces) and sGDML (z, R, E, F).

Both are in kcal/mol and Å by custom; sGDML files may say otherwise in `e_unit` and `r_unit`. Object arrays are
refused: they are pickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..keys import Labeller
from ..structure import Structure
from ..units import Units
from . import blocks

SGDML_LENGTHS = {"Ang": "Å"}


def read(path: Path, labeller: Labeller) -> Iterator[Structure]:
    """The labelled frames.

    Raises:
        DataError: no known layout, pickled members, a damaged archive.
    """
    arrays = load(path)
    layout = blocks.find_layout(arrays)
    if layout is None:
        known = "; ".join(f"{entry.positions}, {entry.numbers}" for entry in blocks.LAYOUTS)
        raise DataError(f"no known layout; inside: {', '.join(arrays)}. Known pairs: {known}", str(path))
    declared: dict[str, str] = {}
    for name, kind in (("e_unit", "energy"), ("r_unit", "length")):
        if name in arrays:
            unit = str(arrays.pop(name))
            declared[kind] = SGDML_LENGTHS.get(unit, unit)
    labeller.adopt(
        layout.keys,
        Units(energy=declared.get("energy"), length=declared.get("length")).merged(layout.units),
        layout.name,
    )
    yield from blocks.frames(arrays, layout, labeller, labeller.source)


def load(path: Path) -> dict[str, np.ndarray]:
    """All members of the archive, with texts as `str`; never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"the archive is damaged or truncated ({error}); copy it again", str(path)) from None
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise DataError(f"cannot read the archive ({error})", str(path)) from None
        raise DataError(
            "holds pickled (object) arrays, which are never opened, since that would execute code from the file; "
            "save them as plain arrays",
            str(path),
        ) from None
    return {name: np.char.decode(a, "utf-8") if a.dtype.kind == "S" else a for name, a in arrays.items()}
