"""`tesseral relax`: relax structures to the nearest energy minimum."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli import add_common, check_device, progress, refuse_overwrite, write_json

if TYPE_CHECKING:
    from ase import Atoms

    from ..md.relax import RelaxResult

EXAMPLE = "tesseral relax molecules.extxyz -o relaxed.extxyz --fmax 0.01"
STRAINS = ("xx", "yy", "zz", "yz", "xz", "xy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tesseral relax`."""
    parser.add_argument("input", metavar="IN", help="file of structures, any format")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="relaxed structures")
    parser.add_argument("--model", help="shipped model or checkpoint (default: the shipped one that covers all)")
    parser.add_argument("--index", default=":", help="frames of IN, as 3, -1 or START:STOP:STEP (default all)")
    parser.add_argument(
        "--cell",
        nargs="?",
        const="all",
        metavar="WHAT",
        help="relax the cell too: all (default), volume, shape, or strains such as xx,yy",
    )
    parser.add_argument("--fmax", type=float, default=0.01, help="largest force at the end, eV/Å (default 0.01)")
    parser.add_argument("--smax", type=float, default=0.1, help="with --cell, largest stress, GPa (default 0.1)")
    parser.add_argument("--pressure", type=float, default=0.0, help="with --cell, outer pressure, GPa (default 0)")
    parser.add_argument("--steps", type=int, default=500, help="most steps of one structure (default 500)")
    parser.add_argument("--optimizer", choices=("bfgs", "lbfgs", "fire"), default="bfgs")
    parser.add_argument("--symmetry", action="store_true", help="keep the space group")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="default: as the model was stored")
    parser.add_argument("--trajectory", metavar="FILE", type=Path, help="all steps (one structure only)")
    add_common(parser, "seed", "device", "json", "force")


def run(args: argparse.Namespace) -> None:
    """Relax every structure; write those done also when interrupted, and report what did not converge."""
    from ..datasets.errors import UserError
    from ..datasets.read import read
    from ..md.calculator import Calculator
    from ..md.choose import choose_model

    refuse_overwrite(args.output, args.force)
    frames = [structure.to_ase() for structure in read(args.input, index=args.index)]
    if not frames:
        raise UserError(f"{args.input} has no frame {args.index!r}")
    if args.trajectory and len(frames) > 1:
        raise UserError(f"--trajectory is for one structure, {args.input} has {len(frames)}: choose one with --index")
    name = args.model or choose_model(frames)
    print(f"model {name}" + ("" if args.model else " (the shipped model that covers these structures)"))
    calculator = Calculator(name, device=check_device(args.device), dtype=args.dtype)
    results: list[RelaxResult] = []
    try:
        for i, atoms in enumerate(progress(frames, description="relax", unit="structures")):
            results.append(_relax_one(args, i, atoms, calculator))
            _print_line(i, results[-1])
    finally:  # what is done is worth keeping, whatever stops the rest
        if results:
            _write(args.output, [result.atoms for result in results])
            print(f"{len(results)} of {len(frames)} structures in {args.output}")
    if args.json:
        write_json(args.json, {"model": name, "structures": [result.to_dict() for result in results]})
    failed = [i for i, result in enumerate(results) if not result.converged]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(frames)} structures did not converge in {args.steps} steps (frames "
            f"{', '.join(map(str, failed))}): they are in {args.output} as far as they came; raise --steps "
            "or --fmax, or try --optimizer fire"
        )


def _relax_one(args: argparse.Namespace, frame: int, atoms: Atoms, calculator: Any) -> RelaxResult:
    from ..datasets.errors import UserError
    from ..md.relax import relax

    try:
        return relax(
            atoms,
            calculator,
            cell=_cell(args.cell),
            fmax=args.fmax,
            smax_GPa=args.smax,
            steps=args.steps,
            optimizer=args.optimizer,
            symmetry=args.symmetry,
            pressure_GPa=args.pressure,
            trajectory=args.trajectory,
            force=args.force,
            progress=True,
        )
    except UserError as error:
        raise UserError(f"{args.input}, frame {frame} of those chosen: {error}") from error


def _cell(text: str | None) -> bool | str | list[bool]:
    """The value of --cell as `relax` takes it."""
    from ..datasets.errors import UserError

    if text is None or text == "all":
        return text is not None
    if text in ("volume", "shape"):
        return text
    parts = text.split(",")
    if not set(parts) <= set(STRAINS):
        raise UserError(f"--cell {text}: write all, volume, shape, or some of {','.join(STRAINS)}")
    return [strain in parts for strain in STRAINS]


def _print_line(number: int, result: RelaxResult) -> None:
    stress = "" if result.max_stress_GPa is None else f"  stress {result.max_stress_GPa:.3f} GPa"
    print(
        f"{number:5d} {result.atoms.symbols!s:16} {'converged' if result.converged else 'NOT CONVERGED':13} "
        f"{result.steps:4d} steps  energy {result.energy:.6f} eV  fmax {result.fmax:.4f} eV/Å{stress}",
        flush=True,
    )


def _write(path: Path, frames: list[Atoms]) -> None:
    """Write structures atomically; the format follows the name."""
    from ..datasets.structure import Structure

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".h5", ".hdf5"):
        from ..datasets.store_writer import write_store

        write_store(path, (Structure.from_ase(atoms) for atoms in frames), overwrite=True)
        return
    from ase.io import write

    temporary = path.with_name(f".tmp.{path.name}")  # keeps the ending, from which ASE knows the format
    try:
        write(temporary, frames if len(frames) > 1 else frames[0])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
