"""`tesseral data hamiltonian`: Hamiltonian labels by PySCF."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli import COMMAND_LINE, add_common, write_json, write_text

if TYPE_CHECKING:
    from ..potentials.hamiltonian.labelling import Summary

SUMMARY = "Fock matrices, overlaps and initial guesses of molecules by PySCF (restricted Kohn-Sham)"
EXAMPLE = "tesseral data hamiltonian molecules.extxyz -o H.h5 --functional b3lyp --basis def2-svp --processes 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command."""
    parser.add_argument(
        "molecules",
        metavar="MOLECULES",
        nargs="+",
        help="files of neutral closed-shell molecules; or files of Hamiltonians (QH9 .db, MD17 .npz or .db, HDF5), "
        "which get overlap and guess and keep their matrices",
    )
    parser.add_argument("-o", "--output", metavar="H.h5", type=Path, required=True, help="label file to write")
    parser.add_argument("--functional", help="as PySCF names it (default b3lyp, of a foreign file: its own)")
    parser.add_argument("--basis", help="as PySCF names it (default def2-svp, of a foreign file: its own)")
    parser.add_argument("--grid-level", type=int, metavar="N", help="PySCF's integration grid, 0 to 9 (default 3)")
    parser.add_argument("--forces", action="store_true", help="also forces (eV/Å)")
    parser.add_argument(
        "--compact",
        action="store_true",
        help="keep only the difference to the guess, in single precision (enough to train; the rest is recomputed)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N molecules")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="molecules at a time (default 1)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted job; failures are tried again")
    parser.add_argument(
        "--collect",
        action="store_true",
        help="compute nothing: write what an unfinished job has so far, and leave the job as it is",
    )
    add_common(parser, "json", "force")


def run(args: argparse.Namespace) -> int | None:
    """Label the molecules; exit code 2 only if none has a label."""
    from tqdm import tqdm

    from ..potentials.hamiltonian.labelling import make_labels
    from ..potentials.hamiltonian.readers import open_work

    if args.json is not None and args.json.exists() and not args.force:
        from ._cli import refuse_overwrite

        refuse_overwrite(args.json, args.force)
    work, options = open_work(
        args.molecules,
        functional=args.functional,
        basis=args.basis,
        grid_level=args.grid_level,
        forces=args.forces,
        compact=args.compact,
        processes=args.processes,
        limit=args.limit,
    )
    with tqdm(total=len(work), desc="label", unit=" molecules", disable=None, leave=False) as bar:
        summary = make_labels(
            work,
            args.output,
            options,
            resume=args.resume,
            overwrite=args.force,
            collect=args.collect,
            provenance={"command": list(COMMAND_LINE.get()), "sources": [Path(p).name for p in args.molecules]},
            progress=lambda done: bar.update(done - bar.n),
        )
    _report(args, summary, len(work), str(options.level))
    return None


def _report(args: argparse.Namespace, summary: Summary, total: int, level: str) -> None:
    import json

    seconds = f"{summary.seconds / max(summary.written, 1):.1f} s each" if summary.written else ""
    print(f"{summary.written} of {total} labels ({level}) in {args.output}; {seconds}")
    record: dict[str, Any] = {
        "output": str(args.output),
        "level": level,
        "n_molecules": total,
        "n_labels": summary.written,
        "computing_seconds": summary.seconds,
        "failures": summary.failures,
    }
    if summary.failures:
        path = args.output.with_name(args.output.name + ".failures.json")
        write_text(path, json.dumps(summary.failures, indent=2, ensure_ascii=False) + "\n")
        print(f"{len(summary.failures)} molecules have no label; reasons in {path}")
    if args.json:
        write_json(args.json, record)
