"""Labels of many molecules: in parallel, resumable after `kill -9`, with a list of what failed.

While `OUT.h5` is made, every finished label is a file of its own in the folder `OUT.h5.partial`, written to a temporary
name and renamed; the end joins them in the order of the molecules. An interrupted job leaves the folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.errors import DataError, UserError
from ...datasets.structure import Structure
from .labels import LabelError, complete, label, layout_of
from .level import Level
from .store import Label, write_labels

Work = Structure | Label
"""A molecule to label, or a foreign label to which the guess is added."""


@dataclass
class Summary:
    """What a labelling job did."""

    written: int
    failures: list[dict[str, Any]] = field(default_factory=list)
    """{"index", "name", "reason"} of molecules without a label."""
    seconds: float = 0.0
    """Computing time of the labels, summed over the processes and over resumed runs."""


@dataclass(frozen=True)
class Options:
    """How labels are made."""

    level: Level
    forces: bool = False
    compact: bool = False
    processes: int = 1


def make_labels(
    work: Sequence[Work],
    output: str | Path,
    options: Options,
    *,
    resume: bool = False,
    overwrite: bool = False,
    collect: bool = False,
    provenance: dict[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Label every molecule and write the label file; failures are listed, not fatal.

    Args:
        work: molecules, or foreign labels to complete.
        output: label file to write.
        options: level of theory and so on.
        resume: go on with an interrupted job; what failed is tried again.
        overwrite: replace an existing file, forget an interrupted job.
        collect: compute nothing; write the file of the labels that an unfinished job has so far, and leave the job.
        provenance: kept in the file.
        progress: called with the number of finished molecules.

    Raises:
        UserError: the output exists, another job's remains lie there, or no molecule got a label.
    """
    output = Path(output)
    unfinished = _folder(output).exists()  # what --collect wrote may be replaced by the whole
    if output.exists() and not (overwrite or (unfinished and (collect or resume))):
        raise UserError(f"{output} exists already; choose another name or say --force to replace it")
    parts = _Parts(output, _fingerprint(work, options), resume=resume or collect, overwrite=overwrite)
    finished = parts.finished()
    progress(len(finished))
    failures: list[dict[str, Any]] = []
    if not collect:
        todo = [k for k in range(len(work)) if k not in finished]
        for k, error in _run(work, todo, parts, options):
            if error is not None:
                failures.append({"index": k, "name": _name(work[k], k), "reason": error})
            finished = finished | {k}
            progress(len(finished))
    if not parts.finished():
        first = f"; the first: {failures[0]['name']}: {failures[0]['reason']}" if failures else ""
        raise UserError(f"none of the {len(work)} molecules has a label, {output} is not written{first}")
    summary = _join(parts, output, options, provenance or {}, len(work))
    summary.failures = sorted(failures, key=lambda f: f["index"])
    if not collect:
        parts.remove()
    return summary


def _name(item: Work, k: int) -> str:
    if isinstance(item, Label):
        return item.name or str(k)
    for key in ("name", "gdb_index", "id"):
        if key in item.info:
            return str(item.info[key])
    return str(k)


def _fingerprint(work: Sequence[Work], options: Options) -> str:
    """Hash of everything that the labels depend on."""
    digest = sha256(json.dumps([options.level.header(), options.forces, options.compact]).encode())
    for item in work:
        digest.update(np.asarray(item.numbers, dtype=np.int64).tobytes())
        digest.update(np.asarray(item.positions, dtype=np.float64).tobytes())
    return digest.hexdigest()


def _folder(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


class _Parts:
    """Folder of finished labels."""

    def __init__(self, output: Path, job: str, *, resume: bool, overwrite: bool) -> None:
        self.folder = _folder(output)
        record = self.folder / "job"
        if self.folder.exists() and overwrite and not resume:
            shutil.rmtree(self.folder)
        if self.folder.exists():
            if not resume:
                raise UserError(f"an interrupted job left {self.folder}: go on (--resume) or start anew (--force)")
            if record.exists() and record.read_text() != job:
                raise UserError(f"{self.folder} is of another job (other molecules or level): start anew (--force)")
        elif resume:
            raise UserError(f"no interrupted job to go on with: {self.folder} is absent")
        self.folder.mkdir(parents=True, exist_ok=True)
        record.write_text(job)

    def finished(self) -> set[int]:
        return {int(path.stem) for path in self.folder.glob("*.npz")}

    def path(self, k: int) -> Path:
        return self.folder / f"{k:07d}.npz"

    def labels(self) -> Iterator[Label]:
        for k in sorted(self.finished()):
            yield _load(self.path(k))

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def _save(path: Path, made: Label) -> None:
    present = {key: value for key, value in vars(made).items() if value is not None}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        np.savez(out, **present)
    os.replace(temporary, path)


def _load(path: Path) -> Label:
    with np.load(path) as stored:
        parts = {key: stored[key] for key in stored.files}
    scalars = {key: parts[key].item() for key in ("name", "energy", "cycles", "seconds")}
    return Label(**{**parts, **scalars})


def _join(parts: _Parts, output: Path, options: Options, provenance: dict[str, Any], total: int) -> Summary:
    numbers: set[int] = set()
    seconds = 0.0
    for made in parts.labels():
        numbers |= set(made.numbers.tolist())
        seconds += made.seconds
    layout = layout_of(options.level.basis, sorted(numbers))
    record = {**provenance, "molecules": total, "seconds": round(seconds, 1)}
    written = write_labels(output, parts.labels(), options.level, layout, provenance=record)
    return Summary(written, seconds=seconds)


def _one(item: Work, name: str, path: Path, options: Options) -> str | None:
    """Label one molecule into its file; the reason if there is none. Runs in a worker."""
    from pyscf import lib

    lib.num_threads(1)  # the processes share the cores
    try:
        if isinstance(item, Label):
            made = complete(item, options.level)
        else:
            made = label(item, options.level, name=name, forces=options.forces)
    except (LabelError, DataError) as error:
        return str(error)
    _save(path, made.compact() if options.compact else made)
    return None


def _run(
    work: Sequence[Work], todo: Iterable[int], parts: _Parts, options: Options
) -> Iterator[tuple[int, str | None]]:
    """Each molecule's number and reason of failure as they finish."""
    if options.processes == 1:
        for k in todo:
            yield k, _one(work[k], _name(work[k], k), parts.path(k), options)
        return
    waiting: dict[Future[str | None], int] = {}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        try:
            for k in todo:
                waiting[pool.submit(_one, work[k], _name(work[k], k), parts.path(k), options)] = k
                while len(waiting) >= 2 * options.processes:
                    yield from _done(waiting)
            while waiting:
                yield from _done(waiting)
        except BrokenProcessPool:
            raise UserError("a worker died (out of memory?): go on with --resume and fewer --processes") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _done(waiting: dict[Future[str | None], int]) -> Iterator[tuple[int, str | None]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()
