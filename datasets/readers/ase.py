"""Whatever else ASE reads: POSCAR, OUTCAR, vasprun.xml, CIF, .traj, LAMMPS dumps, output of many codes.

ASE delivers eV, Å and its own stress sign. Formats that could execute or unpickle something are left out.
"""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..convert import raw_from_ase
from ..errors import DataError
from ..keys import Labeller
from ..structure import Structure

log = logging.getLogger(__name__)

# File name -> ASE's format, where ASE's own guess does not know the names that people give (OUTCAR.md.10).
NAMES = (
    ("*outcar*", "vasp-out"),
    ("*vasprun*", "vasp-xml"),
    ("*xdatcar*", "vasp-xdatcar"),
    ("*poscar*", "vasp"),
    ("*contcar*", "vasp"),
    ("*.vasp", "vasp"),
    ("*.cif", "cif"),
    ("*.traj", "traj"),
    ("*.lammpstrj*", "lammps-dump-text"),
)
REFUSED = ("bundletrajectory", "gpw", "py", "db", "json", "mysql", "postgresql", "lammps-dump-binary")
CONVERGED = "aborting loop because EDIFF is reached"


def read(path: Path, labeller: Labeller) -> Iterator[Structure]:
    """The labelled frames of a file.

    Raises:
        DataError: the format is not recognised, is refused, or ASE cannot parse the file.
    """
    with unpacked(path) as plain:
        form = _format(plain, path)
        if form == "lammps-dump-text":
            _require_elements(plain, path)
        converged = _converged_steps(plain) if form == "vasp-out" else []
        if not all(converged):
            log.warning(
                "%s: %d of %d steps did not converge (info scf_converged = False); leave them out of a training",
                path, converged.count(False), len(converged),
            )  # fmt: skip
        for number, atoms in enumerate(_atoms(plain, form, path)):
            where = f"{labeller.source}, frame {number}"
            frame = raw_from_ase(atoms)
            if number < len(converged):
                frame.info["scf_converged"] = converged[number]
            if form == "lammps-dump-text":
                frame.labels.pop("energy", None)  # ASE sets 0.0 beside the forces
            if form == "cif":
                _tidy_cif(frame, where)
            yield labeller(frame, where)


def _require_elements(dump: Path, path: Path) -> None:
    """ASE would take the LAMMPS type 1 for hydrogen."""
    with dump.open(errors="replace") as handle:
        columns = next((line for line in handle if line.startswith("ITEM: ATOMS")), "").split()
    if "element" not in columns:
        raise DataError(
            "the LAMMPS dump has no column `element`, so the atoms cannot be told; write it with "
            "`dump_modify … element …`",
            str(path),
        )


def _tidy_cif(frame: Structure, where: str) -> None:
    """Refuse disordered sites (ASE keeps the majority silently); drop what only repeats the structure."""
    for site, species in frame.info.pop("occupancy", {}).items():
        if len(species) != 1 or abs(sum(species.values()) - 1) > 1e-3:
            raise DataError(f"site {site} is partly occupied {species}: make an ordered structure first", where)
    frame.arrays.pop("spacegroup_kinds", None)
    group = frame.info.get("spacegroup")
    if group is not None:
        frame.info["spacegroup"] = str(getattr(group, "symbol", group))


def _atoms(plain: Path, form: str, path: Path) -> Iterator[Any]:
    import ase.io

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of parsers on what they skip
            yield from ase.io.iread(plain, index=":", format=form)
    except DataError:
        raise
    except Exception as error:  # ASE's parsers raise anything at all on a damaged file
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0]:.120}" if text else type(error).__name__
        raise DataError(f"ASE cannot read it as {form} ({reason}); is it complete?", str(path)) from error


def _format(plain: Path, path: Path) -> str:
    from ase.io.formats import UnknownFileTypeError, filetype

    name = path.name.lower().removesuffix(".gz")
    form = next((form for pattern, form in NAMES if fnmatch(name, pattern)), None)
    if form is None:
        try:
            form = filetype(str(plain), guess=False)
        except (UnknownFileTypeError, UnicodeDecodeError, ValueError):
            form = None
    if form is None:
        raise DataError(
            "the format is not recognised; convert it to extended XYZ, or give it the usual suffix", str(path)
        )
    if form in REFUSED:
        raise DataError(f"the format {form} is not read (it may execute or unpickle); convert it", str(path))
    return form


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or a decompressed copy of a .gz file that lives as long as the `with` block."""
    if path.suffix != ".gz":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tesseral-") as folder:
        plain = Path(folder) / path.stem
        with gzip.open(path, "rb") as packed, plain.open("wb") as handle:
            shutil.copyfileobj(packed, handle)
        yield plain


def _converged_steps(outcar: Path) -> list[bool]:
    """For every ionic step of an OUTCAR, whether its electronic loop converged.

    VASP says "EDIFF is reached" also when it ran out of NELM steps, so that these are counted.
    """
    steps: list[bool] = []
    reached, count, limit = False, 0, 0
    with outcar.open(errors="replace") as handle:
        for line in handle:
            if not limit and (match := re.match(r"\s*NELM\s*=\s*(\d+)", line)):
                limit = int(match.group(1))
            elif match := re.search(r"Iteration\s+\d+\(\s*(\d+)\)", line):
                count = int(match.group(1))
            elif CONVERGED in line:
                reached = True
            elif re.search(r"POSITION\s+TOTAL-FORCE", line):
                steps.append(reached and (not limit or count < limit))
                reached = False
    return steps
