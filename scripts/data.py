"""`tesseral data`: convert, inspect, check and split data sets; Hamiltonian labels."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli import COMMAND_LINE, add_common, progress, refuse_overwrite, write_json

if TYPE_CHECKING:
    from ..datasets.source import Source
    from ..datasets.structure import Structure

EXAMPLE = "tesseral data convert molecules.extxyz.gz -o molecules.h5\n  tesseral data check molecules.h5"
STORES = (".h5", ".hdf5")
PART_NAMES = {1: ("all",), 2: ("train", "test"), 3: ("train", "valid", "test")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sub-commands of `tesseral data`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_convert(actions)
    _add_inspect(actions)
    _add_check(actions)
    _add_split(actions)
    _add_hamiltonian(actions)


def run(args: argparse.Namespace) -> int | None:
    """Run the chosen action."""
    return args.action(args)


def _action(
    actions: Any, name: str, summary: str, example: str, function: Callable[[argparse.Namespace], int | None]
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(action=function)
    return parser


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Options that say what a foreign file holds; what is guessed without them is printed."""
    parser.add_argument(
        "--keys",
        default="",
        metavar="LABEL=KEY,…",
        help="names of labels: energy=REF_energy,forces=-gradient",
    )
    parser.add_argument(
        "--units",
        default="",
        metavar="NAME=UNIT,…",
        help="units of the file: energy=kcal/mol,stress=kbar,stress_sign=-1",
    )


def _add_convert(actions: Any) -> None:
    parser = _action(
        actions,
        "convert",
        "convert files of any format to one HDF5 store (or to the format that the suffix of OUT names)",
        "tesseral data convert calc1.xml calc2.xml set.npz -o all.h5 --units energy=kcal/mol",
        _convert,
    )
    parser.add_argument("sources", metavar="SRC", nargs="+", help="files; FILE.h5::group chooses inside an HDF5 file")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="store (.h5) to write")
    _add_reading(parser)
    parser.add_argument("--append", action="store_true", help="add to an existing store")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted conversion")
    parser.add_argument(
        "--save-every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="longest work that can be lost (default 30)",
    )
    add_common(parser, "json", "force")


def _convert(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..datasets.errors import UserError
    from ..datasets.ingest import convert
    from ..datasets.keys import KeyMap
    from ..datasets.read import iread
    from ..datasets.units import Units
    from ..datasets.write import write

    _refuse_results(args)
    keys, units = KeyMap.parse(args.keys), Units.parse(args.units)
    if args.output.suffix.lower() in STORES:
        with tqdm(desc="convert", unit=" frames", disable=None, leave=False) as bar:
            n_frames = convert(
                args.sources,
                args.output,
                keys=keys,
                units=units,
                overwrite=args.force,
                append=args.append,
                resume=args.resume,
                provenance={"command": list(COMMAND_LINE.get())},
                progress=lambda done: _advance(bar, done),
                flush_seconds=args.save_every,
            )
    elif args.append or args.resume:
        raise UserError(f"--append and --resume are for stores; {args.output} is not named .h5")
    else:
        refuse_overwrite(args.output, args.force)
        frames = progress(iread(args.sources, keys=keys, units=units), description="convert", unit="frames")
        n_frames = write(args.output, frames, overwrite=args.force)
    size = args.output.stat().st_size
    print(f"{n_frames} frames in {args.output} ({size / 1e6:.1f} MB)")
    if args.json:
        write_json(args.json, {"output": str(args.output), "n_frames": n_frames, "bytes": size})


def _advance(bar: Any, done: int) -> None:
    """Move a progress bar to `done`; a resumed job begins behind zero."""
    bar.update(done - bar.n)


def _add_inspect(actions: Any) -> None:
    parser = _action(
        actions,
        "inspect",
        "counts, elements, labels, ranges and histograms of a data set",
        "tesseral data inspect train.extxyz --plot train.png",
        _inspect,
    )
    parser.add_argument("data", metavar="FILE", nargs="+", help="one or several files, taken together")
    _add_reading(parser)
    parser.add_argument("--cutoff", type=float, default=5.0, metavar="Å", help="of the neighbour count (default 5)")
    parser.add_argument("--plot", metavar="F.png", type=Path, help="write histograms (png, pdf or svg)")
    add_common(parser, "json", "force")


def _inspect(args: argparse.Namespace) -> None:
    from ..datasets.inspect import describe, inspect, plot

    _refuse_results(args, args.plot)
    summary = inspect(_open(args), cutoff=args.cutoff, progress=_bar("inspect"))
    print(describe(summary))
    if args.plot:
        plot(summary, args.plot)
        print(f"histograms: {args.plot}")
    if args.json:
        write_json(args.json, {"data": args.data, **summary.to_dict()})


def _add_check(actions: Any) -> None:
    parser = _action(
        actions,
        "check",
        "find the faults that ruin trainings: units, signs, duplicates, outliers, bad cells … "
        "(exit code 2 when a fatal one is found)",
        "tesseral data check train.extxyz --json findings.json",
        _check,
    )
    parser.add_argument("data", metavar="FILE", nargs="+", help="one or several files, taken together")
    _add_reading(parser)
    add_common(parser, "json", "force")


def _check(args: argparse.Namespace) -> int:
    from ..datasets.doctor import check, report

    _refuse_results(args)
    source = _open(args)
    findings = check(source, progress=_bar("check"))
    print(f"{source.name}: {len(source)} frames")
    print(report(findings))
    if args.json:
        record = {"data": args.data, "n_frames": len(source), "findings": [asdict(one) for one in findings]}
        write_json(args.json, record)
    return 2 if any(one.level == "fatal" for one in findings) else 0


def _add_split(actions: Any) -> None:
    parser = _action(
        actions,
        "split",
        "split a data set into parts, one file each",
        "tesseral data split all.h5 --fractions 0.8 0.1 0.1 --by formula --seed 1",
        _split,
    )
    parser.add_argument("data", metavar="FILE", nargs="+", help="one or several files, taken together")
    parser.add_argument("--fractions", type=float, nargs="+", required=True, metavar="F", help="of the parts; sum 1")
    parser.add_argument(
        "--by",
        default="random",
        help="random (default), formula, scaffold, or a key such as config_type: no group is torn",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the parts (default train, valid, test)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PREFIX",
        help="files are PREFIX_NAME.SUFFIX (default: FILE without its suffix)",
    )
    parser.add_argument("--format", metavar="SUFFIX", help="h5, extxyz, extxyz.gz … (default: as FILE, else h5)")
    _add_reading(parser)
    add_common(parser, "seed", "json", "force")


def _add_hamiltonian(actions: Any) -> None:
    from . import _data_hamiltonian as hamiltonian

    parser = _action(actions, "hamiltonian", hamiltonian.SUMMARY, hamiltonian.EXAMPLE, hamiltonian.run)
    hamiltonian.add_arguments(parser)


def _split(args: argparse.Namespace) -> None:
    from ..datasets.source import Subset
    from ..datasets.split import split
    from ..datasets.store import write_store
    from ..datasets.write import write

    paths = _part_paths(args)
    _refuse_results(args, *paths.values())
    source = _open(args)
    parts = split(source, args.fractions, by=args.by, seed=args.seed)
    record: dict[str, Any] = {}
    for (name, path), part in zip(paths.items(), parts, strict=True):
        frames = progress(Subset(source, part), description=name, total=len(part), unit="frames")
        if path.suffix.lower() in STORES:
            origin = {
                "command": list(COMMAND_LINE.get()),
                "part": name,
                "of": getattr(source, "provenance", source.name),
            }
            write_store(path, frames, provenance=origin, overwrite=args.force)
        else:
            write(path, frames, overwrite=args.force)
        print(f"{len(part)} frames in {path}")
        record[name] = {"path": str(path), "n_frames": len(part), "frames": part}
    if args.json:
        write_json(args.json, {"data": args.data, "by": args.by, "seed": args.seed, "parts": record})


def _part_paths(args: argparse.Namespace) -> dict[str, Path]:
    """File of each part by its name; UserError when names and fractions do not match."""
    from ..datasets.errors import UserError

    count = len(args.fractions)
    names = args.names or PART_NAMES.get(count, tuple(f"part{k}" for k in range(count)))
    if len(names) != count or len(set(names)) != count:
        raise UserError(f"{count} fractions need {count} different --names, got: {' '.join(names)}")
    first = Path(args.data[0].partition("::")[0])
    stem, _, suffix = first.name.partition(".")
    known = suffix.lower() in ("h5", "hdf5", "xyz", "extxyz", "xyz.gz", "extxyz.gz")
    suffix = args.format.lstrip(".") if args.format else suffix if known else "h5"
    prefix = args.output or str(first.with_name(stem))
    return {name: Path(f"{prefix}_{name}.{suffix}") for name in names}


def _open(args: argparse.Namespace) -> Source:
    from ..datasets.keys import KeyMap
    from ..datasets.read import open_source
    from ..datasets.units import Units

    return open_source(args.data, keys=KeyMap.parse(args.keys), units=Units.parse(args.units))


def _bar(description: str) -> Callable[[Iterable[Structure]], Iterable[Structure]]:
    """What shows the progress of a pass."""
    return lambda frames: progress(frames, description=description, unit="frames")


def _refuse_results(args: argparse.Namespace, *paths: Path | None) -> None:
    """Fail before any work when a result exists and the user did not say --force."""
    for path in (*paths, args.json):
        if path is not None:
            refuse_overwrite(path, args.force)
