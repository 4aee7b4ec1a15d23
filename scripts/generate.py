"""`tesseral generate`: draw molecules from a trained generator, write them, and say how good they are."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli import add_common, check_device, refuse_overwrite, write_json, write_text

if TYPE_CHECKING:
    import numpy as np

    from ..datasets.structure import Structure
    from ..generative.chemistry import Verdict
    from ..generative.model import EqgatDiff
    from ..generative.strain import Relaxer

EXAMPLE = "tesseral generate runs/generator/best.safetensors -n 100 -o molecules.sdf --steps 100 --json quality.json"
CHUNK = 500  # molecules between saves of unfinished work
MOST_ROUNDS = 20  # --until-valid gives up after this many times n
SMILES_SUFFIXES = (".smi", ".smiles")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tesseral generate`."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint of a generator")
    parser.add_argument("-n", type=int, required=True, metavar="N", help="number of molecules")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="OUT.sdf, .extxyz, .h5 or .smi"
    )
    parser.add_argument(
        "--steps", type=int, metavar="K", help="network calls (default: all noise levels of the model)"
    )
    parser.add_argument(
        "--eta", type=float, default=1.0, help="noise of the steps, 1 ancestral … 0 (default 1)"
    )
    parser.add_argument(
        "--atoms", metavar="18|12-24", help="atoms of each molecule (default: as in the training data)"
    )
    parser.add_argument("--fix", metavar="CORE.sdf", help="a part that every molecule contains unchanged")
    parser.add_argument("--add-atoms", metavar="8|4-10", help="with --fix, atoms to add")
    parser.add_argument(
        "--resample", type=int, default=1, metavar="R", help="with --fix, rounds per step (default 1)"
    )
    parser.add_argument(
        "--until-valid", action="store_true", help="go on until N valid molecules are there; write only these"
    )
    parser.add_argument(
        "--largest-fragment", action="store_true", help="write the largest fragment of each molecule"
    )
    parser.add_argument(
        "--relax",
        metavar="mmff|MODEL",
        help="relax the valid molecules, by MMFF94 or a potential, and report the strain",
    )
    parser.add_argument("--reference", metavar="FILE", help="SMILES of the training data, for novelty")
    parser.add_argument(
        "--batch", type=int, metavar="B", help="atom pairs computed at a time (default 60000)"
    )
    parser.add_argument("--grid", metavar="F.png", type=Path, help="picture of the first valid molecules")
    add_common(parser, "seed", "device", "json", "force")


def run(args: argparse.Namespace) -> None:
    """Generate, judge, write, report."""
    from ..datasets.errors import UserError
    from ..generative import load

    if args.n < 1:
        raise UserError(f"-n {args.n}: ask for at least one molecule")
    if (args.fix is None) != (args.add_atoms is None):
        raise UserError(
            "--fix and --add-atoms belong together: the part that is kept, and how many atoms to add"
        )
    if args.fix is not None and args.atoms is not None:
        raise UserError("--atoms is for whole molecules; with --fix say --add-atoms")
    refuse_overwrite(args.output, args.force)
    model = load(args.model, device=check_device(args.device))
    start = time.perf_counter()
    structures, verdicts = _generate(args, model)
    seconds = time.perf_counter() - start
    report = _report(args, model, structures, verdicts, seconds)
    if args.relax:
        report["strain"] = _relax(args, model, structures, verdicts)
    written = _write(args, model, structures, verdicts)
    if args.grid:
        _draw(args.grid, model, structures, verdicts)
    print(_table(report))
    print(f"{written} molecules in {args.output}")
    if args.json:
        write_json(args.json, report)


def _generate(args: argparse.Namespace, model: EqgatDiff) -> tuple[list[Structure], list[Verdict]]:
    """All that was generated, in the order of its numbers, with RDKit's verdicts; takes up unfinished work."""
    from tqdm import tqdm

    from ..generative.chemistry import judge

    structures: list[Structure] = []
    verdicts: list[Verdict] = []
    implicit = model.vocabulary.implicit_hydrogens
    with tqdm(total=args.n, unit=" mol", disable=None, leave=False) as bar:
        for chunk in _chunks(args, model):
            new = [judge(s, implicit_hydrogens=implicit) for s in chunk]
            structures += chunk
            verdicts += new
            bar.update(sum(v.valid for v in new) if args.until_valid else len(new))
            if args.until_valid and sum(v.valid for v in verdicts) >= args.n:
                break
    return structures, verdicts


def _chunks(args: argparse.Namespace, model: EqgatDiff) -> Iterator[list[Structure]]:
    """Molecules by number; each chunk is kept in a hidden file until the whole output is written."""
    from ..datasets.read import read
    from ..datasets.store_writer import write_store
    from ..generative.sampler import SamplerOptions

    options = SamplerOptions(args.steps, args.eta, resample=args.resample)
    settings: dict[str, Any] = {"seed": args.seed, "options": options}
    settings["atoms"] = (
        _range("--atoms", args.atoms) if args.fix is None else _range("--add-atoms", args.add_atoms)
    )
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


def _kept(args: argparse.Namespace, first: int) -> Path:
    """Hidden file of the molecules from number `first` on; its name holds what they depend on."""
    import hashlib

    facts = [
        args.model,
        args.n,
        args.steps,
        args.eta,
        args.atoms,
        args.fix,
        args.add_atoms,
        args.resample,
        args.seed,
    ]
    for name in (args.model, args.fix):
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
    """The first molecule of a file in the form in which the model knows molecules."""
    from ..datasets.read import read
    from ..generative.data import MoleculeOptions, prepared

    implicit, aromatic = model.vocabulary.implicit_hydrogens, 4 in model.vocabulary.bonds.values
    extra = [name for name in model.vocabulary.atoms if name not in ("element", "charge")]
    options = MoleculeOptions(hydrogens="remove" if implicit else "keep", aromatic=aromatic, extra=extra)
    return prepared(read(path, index=0)[0], options)


def _report(
    args: argparse.Namespace,
    model: EqgatDiff,
    structures: list[Structure],
    verdicts: list[Verdict],
    seconds: float,
) -> dict[str, Any]:
    """Quality over all that was generated, and how it was made."""
    from ..generative.geometry import Distributions
    from ..generative.metrics import evaluate

    reference = model.card.get("reference")
    result = evaluate(
        structures,
        model.vocabulary,
        verdicts=verdicts,
        reference=None if reference is None else Distributions.from_dict(reference),
        reference_smiles=_reference_smiles(args.reference) if args.reference else (),
    )
    result["sampling"] = {
        "model": Path(args.model).name,
        "steps": args.steps or model.config.diffusion.steps,
        "seed": args.seed,
        "device": args.device,
        "seconds": round(seconds, 2),
        "molecules_per_second": len(structures) / seconds,
    }
    return result


def _relax(
    args: argparse.Namespace, model: EqgatDiff, structures: list[Structure], verdicts: list[Verdict]
) -> dict[str, Any]:
    """Put each valid molecule's energy minimum (with all hydrogens) in its place; returns the strain's numbers."""
    from ..datasets.errors import UserError
    from ..generative.strain import mmff, relaxed, summary

    relaxer = mmff if args.relax == "mmff" else _by_potential(args.relax, args.device)
    results, n_failed, reason = [], 0, ""
    for k, verdict in enumerate(verdicts):
        if not verdict.valid:
            continue
        try:
            result = relaxed(structures[k], relaxer, implicit_hydrogens=model.vocabulary.implicit_hydrogens)
        except UserError as error:
            n_failed, reason = n_failed + 1, str(error)
            continue
        result.structure.info["energy_drop_kcal_mol"] = result.drop
        structures[k] = result.structure
        results.append(result)
    if n_failed:
        print(f"{n_failed} valid molecules were not relaxed, the last because: {reason}")
    return summary(results, n_failed, Path(args.relax).name)


def _by_potential(name: str, device: str) -> Relaxer:
    """A relaxer by one of our own potentials."""
    from ..generative.strain import KCAL_PER_EV
    from ..md.calculator import Calculator
    from ..md.relax import relax

    calculator = Calculator(name, device=device)

    def run_one(structure: Structure) -> tuple[np.ndarray, float, bool]:
        result = relax(structure.to_ase(), calculator, fmax=0.05)
        drop = KCAL_PER_EV * (result.energy_start - result.energy)
        return result.atoms.positions, drop, result.converged

    return run_one


def _reference_smiles(path: str) -> set[str]:
    """Canonical SMILES of a file of SMILES, as generated molecules are written."""
    from rdkit import Chem, rdBase

    from ..generative.chemistry import canonical_smiles
    from ..generative.data import smiles_of

    with rdBase.BlockLogs():
        molecules = [Chem.MolFromSmiles(text) for text in smiles_of(path)]
    return {canonical_smiles(mol) for mol in molecules if mol is not None}


def _write(
    args: argparse.Namespace, model: EqgatDiff, structures: list[Structure], verdicts: list[Verdict]
) -> int:
    """Write what was asked for, with number and verdict as properties; returns how many."""
    from ..datasets.write import write
    from ..generative.chemistry import judge, largest_fragment

    chosen: list[Structure] = []
    smiles: list[str] = []
    for number, (raw, of_raw) in enumerate(zip(structures, verdicts, strict=True)):
        structure, verdict = raw, of_raw
        if args.largest_fragment and verdict.n_fragments > 1:
            structure = largest_fragment(raw)
            verdict = judge(structure, implicit_hydrogens=model.vocabulary.implicit_hydrogens)
        if args.until_valid and not verdict.valid:
            continue
        structure.info.update(
            name=f"generated-{args.seed}-{number}",
            valid=verdict.valid,
            fragments=verdict.n_fragments,
            stable=verdict.molecule_stable,
            smiles=verdict.smiles,
            **({"reason": verdict.reason} if verdict.reason else {}),
        )
        chosen.append(structure)
        smiles.append(verdict.smiles)
    if args.until_valid:
        chosen, smiles = chosen[: args.n], smiles[: args.n]
    if args.output.suffix in SMILES_SUFFIXES:
        lines = [f"{s} {m.info['name']}" for s, m in zip(smiles, chosen, strict=True) if s]
        write_text(args.output, "".join(f"{line}\n" for line in lines))
        count = len(lines)
    else:
        count = write(args.output, chosen, overwrite=args.force)
    for first in range(0, len(structures), min(CHUNK, args.n)):
        _kept(args, first).unlink(missing_ok=True)
    return count


def _draw(path: Path, model: EqgatDiff, structures: list[Structure], verdicts: list[Verdict]) -> None:
    """Picture of up to 24 valid molecules."""
    from rdkit import Chem
    from rdkit.Chem import Draw

    from ..datasets.errors import UserError

    smiles = [v.smiles for v in verdicts if v.valid][:24]
    if not smiles:
        raise UserError("--grid: no valid molecule to draw")
    image = Draw.MolsToGridImage([Chem.MolFromSmiles(s) for s in smiles], molsPerRow=6, subImgSize=(200, 160))
    image.save(path)


def _table(report: dict[str, Any]) -> str:
    """The numbers that matter, a few lines."""
    stability, sampling = report["stability"], report["sampling"]
    rows = [
        ("valid (one fragment, RDKit accepts it)", report["validity"]),
        ("RDKit accepts it", report["sanitised"]),
        ("one fragment", report["connected"]),
        ("molecules stable, corrected protocol", stability["corrected"]["molecule"]),
        ("molecules stable, legacy protocol", stability["legacy"]["molecule"]),
        ("unique among valid", report["uniqueness"]),
        ("novel among unique", report["novelty"]),
    ]
    lines = [f"{name:42}{100 * value:6.1f} %" for name, value in rows if value is not None]
    lines += [f"  failed {count:6d}  {reason}" for reason, count in report["failures"].items()]
    if "energy_drop" in report.get("strain", {}):
        strain = report["strain"]
        lines.append(
            f"strain by {strain['method']}: median energy drop {strain['energy_drop']['median']:.1f} kcal/mol, "
            f"RMSD {strain['rmsd']['median']:.2f} Å"
        )
    speed = f"{sampling['molecules_per_second']:.1f} molecules/s, {sampling['steps']} steps on {sampling['device']}"
    return "\n".join([f"{report['n_generated']} generated, {speed}", *lines])
