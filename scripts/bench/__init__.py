"""`tesseral bench`: side-by-side timings; other programs run from their own environment, interleaved with ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._cli import add_common, refuse_overwrite

EXAMPLE = "tesseral bench potentials --peer mace=mace-env/bin/python -o benchmarks/results/potentials.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be timed."""
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    summary = "energies, forces and training steps of potentials"
    potentials = kinds.add_parser(
        "potentials",
        help=summary,
        description=f"Time {summary}: CPU, one thread, float32, CPU time.",
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    potentials.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="also time this program with this Python, which has it installed (mace); may be repeated",
    )
    potentials.add_argument(
        "--systems",
        metavar="NAME,…",
        default="molecule,si216,cu500,water192,training",
        help="default: %(default)s (training: steps on a batch of 8 molecules)",
    )
    potentials.add_argument(
        "--models",
        metavar="NAME,…",
        default="random",
        help="our models: names of shipped ones, files, or random (untrained, cutoff 5 Å; default); "
        "NAME@reference runs one on the plain torch kernels",
    )
    potentials.add_argument("--repeats", type=int, default=7, metavar="R", help="measurements (default 7)")
    potentials.add_argument(
        "-o", "--output", type=Path, metavar="FILE.json", help="record to write, with a figure beside it"
    )
    add_common(potentials, "seed", "json", "force")
    potentials.set_defaults(action=_potentials)


def run(args: argparse.Namespace) -> None:
    """Run the chosen benchmark."""
    args.action(args)


def _potentials(args: argparse.Namespace) -> None:
    from .._cli import write_json
    from . import show
    from .potentials import bench, plan

    figure = args.output.with_suffix(".png") if args.output else None
    for path in filter(None, (args.output, figure, args.json)):
        refuse_overwrite(path, args.force)
    record = bench(plan(args.models, args.peer, args.systems, args.repeats, args.seed))
    print(show.table(record))
    for path in filter(None, (args.output, args.json)):
        write_json(path, record)
    if figure:
        show.figure(record, figure)
        print(f"record: {args.output}, figure: {figure}")
