"""`tesseral generate`: draw molecules from a trained generator, write them, and say how good they are."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli import add_common, check_device, refuse_overwrite, write_json
from ._molecules import (
    Batch,
    check_methods,
    check_output,
    draw,
    failed_path,
    plausible,
    strained,
    table,
    write_molecules,
)
from ._wishes import add_arguments as add_wishes
from ._wishes import clashes, wishes

if TYPE_CHECKING:
    from ..datasets.structure import Structure
    from ..generative.model import EqgatDiff
    from ..generative.sampler import SamplerOptions

EXAMPLE = "tesseral generate runs/generator/best.safetensors -n 100 -o molecules.sdf --steps 100 --json quality.json"
CHUNK = 500  # molecules between saves of unfinished work
MOST_ROUNDS = 20  # --until-valid gives up after this many times n


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tesseral generate`."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint of a generator")
    parser.add_argument("-n", type=int, required=True, metavar="N", help="number of molecules")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="OUT.sdf, .extxyz, .h5 or .smi for the valid molecules; the others go to OUT.failed.sdf with the reason",
    )
    parser.add_argument("--steps", type=int, metavar="K", help="network calls (default: all noise levels of the model)")
    parser.add_argument("--eta", type=float, default=1.0, help="noise of the steps, 1 ancestral … 0 (default 1)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="of elements, charges and bonds; below 1 fewer are invalid, and less varied (default 1)",
    )
    parser.add_argument(
        "--free-valences",
        action="store_true",
        help="let atoms have more bonds than any of their kind in the training data: the network as published",
    )
    parser.add_argument("--atoms", metavar="18|12-24", help="atoms of each molecule (default: as in the training data)")
    parser.add_argument(
        "--fix",
        metavar="CORE.sdf",
        help="a part that every molecule contains unchanged; it grows where it lacks hydrogens, a complete molecule at "
        "the place of any",
    )
    parser.add_argument(
        "--add-atoms",
        metavar="8|4-10",
        help="with --fix, atoms to add, hydrogens included where the model has them",
    )
    parser.add_argument("--resample", type=int, default=1, metavar="R", help="with --fix, rounds per step (default 1)")
    parser.add_argument("--until-valid", action="store_true", help="go on until N valid molecules are there")
    parser.add_argument("--largest-fragment", action="store_true", help="write the largest fragment of each molecule")
    parser.add_argument(
        "--relax",
        metavar="mmff|gfn2|MODEL",
        help="relax the valid molecules by MMFF94, GFN2-xTB or a potential, and report the strain",
    )
    parser.add_argument(
        "--strain",
        metavar="gfn2|mmff|MODEL",
        help="report the strain by GFN2-xTB, MMFF94 or a potential; the molecules stay as they are",
    )
    parser.add_argument("--posebusters", action="store_true", help="run PoseBusters' checks on the valid molecules")
    parser.add_argument(
        "--processes", type=int, metavar="P", help="of gfn2 and PoseBusters at a time (default: one per core)"
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="SMILES or molecules of the training data, for novelty and likeness",
    )
    parser.add_argument(
        "--batch", type=int, metavar="B", help="atom pairs computed at a time (default 10000, on a GPU 60000)"
    )
    parser.add_argument("--grid", metavar="F.png", type=Path, help="picture of the first valid molecules")
    add_wishes(parser)
    add_common(parser, "seed", "device", "json", "force")


def run(args: argparse.Namespace) -> None:
    """Generate, judge, write, report."""
    from ..datasets.errors import UserError
    from ..generative import load

    if args.n < 1:
        raise UserError(f"-n {args.n}: ask for at least one molecule")
    if (args.fix is None) != (args.add_atoms is None):
        raise UserError("--fix and --add-atoms belong together: the part that is kept, and how many atoms to add")
    if args.fix is not None and args.atoms is not None:
        raise UserError("--atoms is for whole molecules; with --fix say --add-atoms")
    check_output(args.output)
    check_methods(posebusters=args.posebusters, methods=(args.strain, args.relax))
    for path in filter(None, (args.output, failed_path(args.output), args.grid, args.json)):
        refuse_overwrite(path, args.force)
    model = load(args.model, device=check_device(args.device))
    wished = wishes(args, model)
    start = time.perf_counter()
    batch = _generate(args, model, wished)
    seconds = time.perf_counter() - start
    report = _report(args, model, batch, seconds, wished)
    if args.fix is not None:
        report["core"] = _core_kept(args, model, batch)
    if args.posebusters:
        report["posebusters"] = plausible(batch, args.processes)
    if args.strain:
        report["strain"] = strained(batch, args.strain, device=args.device, processes=args.processes)
    if args.relax:
        report["relaxation"] = strained(batch, args.relax, device=args.device, processes=args.processes, replace=True)
    n_good, n_bad = write_molecules(
        batch,
        args.output,
        seed=args.seed,
        most=args.n if args.until_valid else None,
        largest=args.largest_fragment,
    )
    for first in range(0, len(batch.structures), min(CHUNK, args.n)):
        _kept(args, first).unlink(missing_ok=True)
    report["files"] = {"valid": n_good, "failed": n_bad}
    print(table(report))
    print(f"{n_good} valid molecules in {args.output}" if n_good else f"nothing in {args.output}: none is valid")
    if n_bad:
        print(f"{n_bad} others, each with its reason, in {failed_path(args.output)}")
    if args.grid:
        draw(args.grid, batch.verdicts)
    if args.json:
        write_json(args.json, report)


def _generate(args: argparse.Namespace, model: EqgatDiff, wished: dict[str, Any]) -> Batch:
    """All that was generated, in the order of its numbers, with RDKit's verdicts; takes up unfinished work."""
    from tqdm import tqdm

    from ..generative.chemistry import judge

    implicit = model.vocabulary.implicit_hydrogens
    batch = Batch([], [], implicit)
    with tqdm(total=args.n, unit=" mol", disable=None, leave=False) as bar:
        for chunk in _chunks(args, model, wished):
            new = [judge(s, implicit_hydrogens=implicit) for s in chunk]
            batch.structures += chunk
            batch.verdicts += new
            bar.update(sum(v.valid for v in new) if args.until_valid else len(new))
            if args.until_valid and len(batch.valid) >= args.n:
                break
    return batch


def _chunks(args: argparse.Namespace, model: EqgatDiff, wished: dict[str, Any]) -> Iterator[list[Structure]]:
    """Molecules by number; each chunk is kept in a hidden file until the whole output is written."""
    from ..datasets.read import read
    from ..datasets.store_writer import write_store

    settings: dict[str, Any] = {"seed": args.seed, "options": _options(args), **wished}
    settings["atoms"] = _range("--atoms", args.atoms) if args.fix is None else _range("--add-atoms", args.add_atoms)
    settings["fixed"] = None if args.fix is None else _core(args.fix, model)
    if args.batch is not None:
        settings["max_edges"] = args.batch
    limit = args.n * (MOST_ROUNDS if args.until_valid else 1)
    size = min(CHUNK, args.n)
    for first in range(0, limit, size):
        kept = _kept(args, first)
        if kept.exists():
            yield read(kept)
            continue
        chunk = model.sample(min(size, limit - first), first=first, **settings)
        if limit > size:
            write_store(kept, chunk)
        yield chunk


def _options(args: argparse.Namespace) -> SamplerOptions:
    from ..generative.sampler import SamplerOptions

    return SamplerOptions(
        args.steps,
        args.eta,
        resample=args.resample,
        temperature=args.temperature,
        free_valences=args.free_valences,
    )


def _kept(args: argparse.Namespace, first: int) -> Path:
    """Hidden file of the molecules from number `first` on; its name holds what they depend on."""
    import hashlib

    facts = [
        args.model,
        args.n,
        args.steps,
        args.eta,
        args.temperature,
        args.free_valences,
        args.atoms,
        args.fix,
        args.add_atoms,
        args.resample,
        args.seed,
        sorted(args.property),
        args.pocket,
        args.reference_ligand,
        args.ligand_center,
    ]
    for name in (args.model, args.fix, args.pocket, args.reference_ligand):
        if name is not None and Path(name).is_file():
            facts.append(Path(name).stat().st_mtime_ns)
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    return args.output.with_name(f".{args.output.name}.{digest}.{first}.h5")


def _range(option: str, text: str | None) -> int | tuple[int, int] | None:
    """`18` or `12-24`."""
    from ..datasets.errors import UserError

    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split("-")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    raise UserError(f"{option} {text}: expected a number or a range, as 18 or 12-24")


def _core(path: str, model: EqgatDiff) -> Structure:
    """The first molecule of a file as the part to keep."""
    from ..datasets.read import read
    from ..generative.data import fixed_part

    return fixed_part(read(path, index=0)[0], model.vocabulary)


def _core_kept(args: argparse.Namespace, model: EqgatDiff, batch: Batch) -> dict[str, Any]:
    """In how many molecules the fixed part is found unchanged, looked for as a sub-structure."""
    from ..generative.chemistry import LARGEST_SHIFT, core_rmsd

    core = _core(args.fix, model)
    shifts = [core_rmsd(structure, core) for structure in batch.structures]
    found = [shift for shift in shifts if shift is not None]
    return {
        "n_found": len(found),
        "n_unchanged": sum(shift < LARGEST_SHIFT for shift in found),
        "largest_rmsd": max(found, default=float("nan")),
        "unit": "Å",
    }


def _report(
    args: argparse.Namespace, model: EqgatDiff, batch: Batch, seconds: float, wished: dict[str, Any]
) -> dict[str, Any]:
    """Quality over all that was generated, and how it was made."""
    from ..generative.metrics import evaluate
    from ..generative.reference import Reference

    reference = Reference.of_header(model.card)
    if args.reference:
        reference = Reference.of_file(args.reference, model.vocabulary).or_else(reference)
    result = evaluate(batch.structures, model.vocabulary, verdicts=batch.verdicts, reference=reference)
    result["sampling"] = {
        "model": Path(args.model).name,
        "steps": args.steps or model.config.diffusion.steps,
        "seed": args.seed,
        "valences": "within the training data" if model.bounded(_options(args)) else "free",
        "device": args.device,
        "seconds": round(seconds, 2),
        "molecules_per_second": len(batch.structures) / seconds,
        "properties": wished["properties"],
    }
    if wished["pocket"] is not None:
        result["pocket"] = clashes(batch.structures, wished["pocket"])
    return result
