"""`tesseral bench`: measurements side by side; other programs run from their own environment, interleaved with ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._cli import add_common, refuse_overwrite

EXAMPLE = "tesseral bench potentials --peer mace=mace-env/bin/python -o benchmarks/results/potentials.json"
GENERATIVE_EXAMPLE = "tesseral bench generative eqgat-qm9-noh -n 1000 --reference train.smi -o generative.json"
KERNELS_EXAMPLE = "tesseral bench kernels --cases message,gaunt --repeats 7 -o kernels.json"
HAMILTONIAN_EXAMPLE = "tesseral bench hamiltonian --sizes 20,40,80 -o hamiltonian.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be timed."""
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    _add_potentials(kinds)
    _add_kernels(kinds)
    _add_hamiltonian(kinds)
    _add_generative(kinds)


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


def _add_generative(kinds: Any) -> None:
    summary = "quality and speed of generators of molecules"
    generative = kinds.add_parser(
        "generative",
        help=summary,
        description=f"Measure {summary}, over seeds, with intervals, beside the published numbers.",
        epilog=f"example:\n  {GENERATIVE_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generative.add_argument("models", nargs="+", metavar="MODEL", help="generators: names or checkpoints")
    generative.add_argument("-n", type=int, default=1000, metavar="N", help="molecules per seed (default 1000)")
    generative.add_argument("--seeds", type=int, default=3, metavar="S", help="number of seeds (default 3)")
    generative.add_argument(
        "--steps",
        metavar="K,…",
        help="network calls (default: those of 25,50,100 that the model has, and all its noise levels)",
    )
    generative.add_argument("--eta", type=float, default=1.0, help="noise of the steps, 1 ancestral … 0 (default 1)")
    generative.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="of elements, charges and bonds (default 1)",
    )
    generative.add_argument(
        "--free-valences", action="store_true", help="the network alone, without bounds by the training data"
    )
    generative.add_argument(
        "--reference",
        metavar="FILE",
        help="SMILES or molecules of the training data, for novelty and likeness",
    )
    generative.add_argument(
        "--kept", metavar="FILE", help="molecules kept aside from training: how much the model memorised"
    )
    generative.add_argument("--fcd", action="store_true", help="also the Fréchet ChemNet distance")
    generative.add_argument("--posebusters", action="store_true", help="also PoseBusters' checks")
    generative.add_argument("--strain", metavar="gfn2|mmff|MODEL", help="also the strain of the valid molecules")
    generative.add_argument(
        "--processes", type=int, metavar="P", help="of gfn2 and PoseBusters at a time (default: one per core)"
    )
    add_common(generative, "device")
    _add_output(generative, repeats=False)
    generative.set_defaults(action=_generative)


def _add_hamiltonian(kinds: Any) -> None:
    summary = "Hamiltonian networks beside QHNet made of e3nn layers"
    hamiltonian = kinds.add_parser(
        "hamiltonian",
        help=summary,
        description=f"Check and time {summary}: CPU, one thread, float32, CPU time; peak memory. Exit status 1 if a "
        "check fails.",
        epilog=f"example:\n  {HAMILTONIAN_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hamiltonian.add_argument("--sizes", metavar="ATOMS,…", default="20,40,80", help="molecules (default %(default)s)")
    hamiltonian.add_argument(
        "--sides",
        metavar="NAME,…",
        default="qhnet e3nn,qhnet,sphnet dense,sphnet",
        help="networks (default %(default)s)",
    )
    hamiltonian.add_argument("--paths", metavar="NAME,…", default="forward,step", help="default: %(default)s")
    hamiltonian.add_argument(
        "--preset",
        choices=("published", "small"),
        default="published",
        help="size of the networks (default %(default)s)",
    )
    _add_output(hamiltonian)
    hamiltonian.set_defaults(action=_hamiltonian)


def _add_output(parser: argparse.ArgumentParser, *, repeats: bool = True) -> None:
    if repeats:
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


def _generative(args: argparse.Namespace) -> None:
    from ...datasets.errors import UserError
    from .._cli import check_device
    from .._molecules import check_methods
    from . import generative_show
    from .generative import Plan, bench

    _check_output(args)
    if args.n < 1 or args.seeds < 1:
        raise UserError(f"-n {args.n} --seeds {args.seeds}: ask for at least one of each")
    if args.fcd and args.reference is None:
        raise UserError("--fcd compares with SMILES of the training data: name them by --reference")
    if args.kept is not None and args.reference is None:
        raise UserError("--kept compares with SMILES of the training data: name them by --reference")
    check_methods(posebusters=args.posebusters, methods=(args.strain,), fcd=args.fcd)
    plan = Plan(
        models=tuple(args.models),
        n=args.n,
        seeds=tuple(range(args.seed, args.seed + args.seeds)),
        steps=_steps(args.steps),
        eta=args.eta,
        temperature=args.temperature,
        free_valences=args.free_valences,
        device=check_device(args.device),
        reference=args.reference,
        kept=args.kept,
        fcd=args.fcd,
        posebusters=args.posebusters,
        strain=args.strain,
        processes=args.processes,
    )
    _write(args, bench(plan), generative_show)


def _steps(text: str | None) -> tuple[int, ...] | None:
    """`25,50,100`, sorted."""
    from ...datasets.errors import UserError

    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UserError(f"--steps {text}: expected numbers, as 25,50,100") from None


def _hamiltonian(args: argparse.Namespace) -> int:
    from . import hamiltonian_show
    from .hamiltonian import bench, plan, wrong

    _check_output(args)
    options = {"preset": args.preset, "repeats": args.repeats, "seed": args.seed}
    record = bench(plan(args.sizes, args.sides, args.paths, **options))
    _write(args, record, hamiltonian_show)
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
