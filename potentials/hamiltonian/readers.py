"""What a labelling job has to do with the files that it is given: molecules to label, or labels to complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...datasets.errors import UserError
from ...datasets.read import read
from .foreign import Foreign, chain, reader_of
from .labelling import Options, Work
from .labels import check_level, level_of_theory
from .level import Level


def open_work(
    paths: Sequence[str],
    *,
    functional: str | None = None,
    basis: str | None = None,
    grid_level: int | None = None,
    forces: bool = False,
    compact: bool = False,
    processes: int = 1,
    limit: int | None = None,
) -> tuple[Sequence[Work], Options]:
    """Molecules to label, or foreign labels to complete, and the level of theory.

    Raises:
        UserError: files of different levels, labels and plain molecules mixed, or a level that contradicts the files.
    """
    if processes < 1:
        raise UserError(f"--processes {processes}: at least 1")
    readers = [reader_of(Path(path)) for path in paths]
    if not any(readers):
        level = level_of_theory(functional or "b3lyp", basis or "def2-svp", 3 if grid_level is None else grid_level)
        return read(paths)[:limit], Options(level, forces, compact, processes)
    if not all(readers):
        raise UserError("files of Hamiltonians and files of molecules together: give one kind at a time")
    if forces:
        raise UserError("--forces is for molecules: matrices made elsewhere keep the labels that they have")
    foreign = [reader(Path(path)) for reader, path in zip(readers, paths, strict=True) if reader is not None]
    level = _common_level(foreign, paths, functional, basis, grid_level)
    labels = chain([one.labels for one in foreign])[:limit]
    if not len(labels):
        raise UserError(f"no Hamiltonians in {', '.join(paths)}")
    check_level(labels[0], level)
    return labels, Options(level, compact=compact, processes=processes)


def _common_level(
    foreign: Sequence[Foreign],
    paths: Sequence[str],
    functional: str | None,
    basis: str | None,
    grid_level: int | None,
) -> Level:
    """The one level of all files as this PySCF names it; options fill what files do not state, never contradict."""
    stated = [(one.level, path) for one, path in zip(foreign, paths, strict=True) if one.level is not None]
    for level, path in stated[1:]:
        level.require_same(stated[0][0], path, stated[0][1])
    if not stated:
        if functional is None:
            raise UserError(f"{paths[0]} does not state its functional: name it with --functional")
        return level_of_theory(functional, basis or "def2-svp", 3 if grid_level is None else grid_level)
    first, path = stated[0]
    asked = level_of_theory(
        functional or first.functional,
        basis or first.basis,
        first.grid_level if grid_level is None else grid_level,
    )
    asked.require_same(first, "what was asked for, or this PySCF's meaning of it,", path)
    return replace(first, functional=asked.functional)
