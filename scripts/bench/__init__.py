"""`tesseral bench`: side-by-side timings; other programs run from their own environment, interleaved with ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._cli import add_common, refuse_overwrite

EXAMPLE = "tesseral bench potentials --peer mace=mace-env/bin/python -o benchmarks/results/potentials.json"
KERNELS_EXAMPLE = "tesseral bench kernels --cases message,gaunt --repeats 7 -o kernels.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be timed."""
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    _add_potentials(kinds)
    _add_kernels(kinds)


def _add_potentials(kinds: Any) -> None:
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
    _add_output(potentials)
    potentials.set_defaults(action=_potentials)


def _add_kernels(kinds: Any) -> None:
    summary = "equivariant kernels beside e3nn, sphericart and plain torch"
    kernels = kinds.add_parser(
        "kernels",
        help=summary,
        description=f"Check and time {summary}: CPU, one thread, float32, CPU time. Exit status 1 if a result of "
        "ours is wrong.",
        epilog=f"example:\n  {KERNELS_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kernels.add_argument(
        "--cases",
        metavar="NAME,…",
        default="message,gaunt,harmonics,grid,pair,memory",
        help="default: %(default)s",
    )
    kernels.add_argument(
        "--peers",
        metavar="NAME,…",
        default="e3nn,sphericart",
        help="whom to compare with, where installed beside tesseral (default %(default)s); none: plain torch only",
    )
    _add_output(kernels)
    kernels.set_defaults(action=_kernels)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=7, metavar="R", help="measurements (default 7)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.json", help="record to write, with a figure beside it"
    )
    add_common(parser, "seed", "json", "force")


def run(args: argparse.Namespace) -> int | None:
    """Run the chosen benchmark."""
    status: int | None = args.action(args)
    return status


def _potentials(args: argparse.Namespace) -> None:
    from . import show
    from .potentials import bench, plan

    _check_output(args)
    record = bench(plan(args.models, args.peer, args.systems, args.repeats, args.seed))
    _write(args, record, show)


def _kernels(args: argparse.Namespace) -> int:
    from . import kernel_show
    from .kernels import bench, plan, wrong

    _check_output(args)
    record = bench(plan(args.cases, args.peers, args.repeats, args.seed))
    _write(args, record, kernel_show)
    return 1 if wrong(record) else 0


def _check_output(args: argparse.Namespace) -> None:
    figure = args.output.with_suffix(".png") if args.output else None
    for path in filter(None, (args.output, figure, args.json)):
        refuse_overwrite(path, args.force)


def _write(args: argparse.Namespace, record: dict[str, Any], show: Any) -> None:
    """Print the table, and write the record and the figure where asked."""
    from .._cli import write_json

    print(show.table(record))
    for path in filter(None, (args.output, args.json)):
        write_json(path, record)
    if args.output:
        figure = args.output.with_suffix(".png")
        show.figure(record, figure)
        print(f"record: {args.output}, figure: {figure}")
