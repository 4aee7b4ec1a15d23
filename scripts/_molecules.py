"""Generated molecules once they are there: checks, strain, files, table. Used by `generate` and `bench generative`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.errors import UserError
from ._cli import write_text

if TYPE_CHECKING:
    from ..datasets.structure import Structure
    from ..generative.chemistry import Verdict
    from ..generative.strain import Minimum, Relaxed, Relaxer

SUFFIXES = (".sdf", ".sd", ".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz", ".h5", ".hdf5", ".smi", ".smiles")
SMILES_SUFFIXES = (".smi", ".smiles")


@dataclass
class Batch:
    """All that was generated, in the order of its numbers, with verdicts.

    implicit: whether hydrogens are no atoms. notes: properties of single molecules, by place.
    """

    structures: list[Structure]
    verdicts: list[Verdict]
    implicit: bool
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def valid(self) -> list[int]:
        """Places of the valid molecules."""
        return [k for k, verdict in enumerate(self.verdicts) if verdict.valid]

    def note(self, place: int, **values: Any) -> None:
        """Properties with which a molecule is written."""
        self.notes.setdefault(place, {}).update(values)


def check_output(path: Path) -> None:
    """Refuse a file name whose suffix says no format, before the work is done."""
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: the suffix says no format for molecules; use .sdf, .smi, .extxyz or .h5")


def check_methods(*, posebusters: bool, methods: Sequence[str | None], fcd: bool = False) -> None:
    """Refuse numbers whose package is absent, and a potential that cannot be loaded, before the work is done."""
    from ..generative.extras import require
    from ..potentials import load

    if fcd:
        require("FCD")
    if posebusters:
        require("PoseBusters")
    for method in filter(None, methods):
        if method == "gfn2":
            require("GFN2-xTB")
        elif method != "mmff":
            load(method)


def failed_path(output: Path) -> Path:
    """Where the invalid molecules go: an SD file beside the output."""
    name = output.name.removesuffix(".gz")
    return output.with_name(f"{Path(name).stem}.failed.sdf")


def plausible(batch: Batch, processes: int | None) -> dict[str, Any]:
    """PoseBusters on the valid molecules; what each fails is noted."""
    from ..generative.plausibility import bust, summary

    chosen = [batch.structures[k] for k in batch.valid]
    results = bust(chosen, implicit_hydrogens=batch.implicit, processes=processes)
    for k, names in zip(batch.valid, results, strict=True):
        batch.note(k, posebusters=", ".join(names) or "pass")
    return summary(results, len(batch.structures))


def strained(batch: Batch, method: str, *, device: str, processes: int | None, replace: bool = False) -> dict[str, Any]:
    """Relax the valid molecules by mmff, gfn2 or a potential; their energy drops are noted.

    replace: the minima, with all hydrogens, take the molecules' places.
    """
    from ..generative.strain import mmff, relaxed_by_gfn2, summary

    chosen = [batch.structures[k] for k in batch.valid]
    results: Sequence[Relaxed | UserError]
    if method == "gfn2":
        results = relaxed_by_gfn2(chosen, implicit_hydrogens=batch.implicit, processes=processes)
    else:
        relaxer = mmff if method == "mmff" else by_potential(method, device)
        results = [_relaxed_or_error(s, relaxer, batch.implicit) for s in chosen]
    done = []
    for k, result in zip(batch.valid, results, strict=True):
        if isinstance(result, UserError):
            batch.note(k, not_relaxed=str(result))
            continue
        batch.note(k, energy_drop_kcal_mol=result.drop)
        if replace:
            batch.structures[k] = result.structure
        done.append(result)
    return summary(done, len(results) - len(done), Path(method).name)


def _relaxed_or_error(structure: Structure, relaxer: Relaxer, implicit: bool) -> Relaxed | UserError:
    from ..generative.strain import relaxed

    try:
        return relaxed(structure, relaxer, implicit_hydrogens=implicit)
    except UserError as error:
        return error


def by_potential(name: str, device: str) -> Relaxer:
    """A relaxer by one of our own potentials."""
    from ase.constraints import FixAtoms

    from ..generative.strain import KCAL_PER_EV
    from ..md.calculator import Calculator
    from ..md.relax import relax

    calculator = Calculator(name, device=device)

    def run_one(structure: Structure, held: np.ndarray) -> Minimum:
        atoms = structure.to_ase()
        if len(held):
            atoms.set_constraint(FixAtoms(held))
        result = relax(atoms, calculator, fmax=0.05)
        drop = KCAL_PER_EV * (result.energy_start - result.energy)
        return result.atoms.positions, drop, result.converged

    return run_one


def write_molecules(batch: Batch, output: Path, *, seed: int, most: int | None, largest: bool) -> tuple[int, int]:
    """Write the valid molecules to `output`, the others to :func:`failed_path`; returns how many of each.

    Coordinates that no file can hold are written as zeros. A file without molecules is not written.

    most: so many valid ones at most. largest: the largest fragment of each molecule instead of the whole.
    """
    from ..generative.chemistry import judge, largest_fragment, located

    good: list[Structure] = []
    bad: list[Structure] = []
    for k, (raw, of_raw) in enumerate(zip(batch.structures, batch.verdicts, strict=True)):
        structure, verdict = raw, of_raw
        if largest and verdict.n_fragments > 1:
            structure = largest_fragment(raw)
            verdict = judge(structure, implicit_hydrogens=batch.implicit)
        structure.info.update(
            name=f"generated-{seed}-{k}",
            valid=verdict.valid,
            fragments=verdict.n_fragments,
            stable=verdict.molecule_stable,
            smiles=verdict.isomeric_smiles,
            **({"reason": verdict.reason} if verdict.reason else {}),
            **batch.notes.get(k, {}),
        )
        if not located(structure):
            structure.positions = np.zeros_like(structure.positions)
        (good if verdict.valid else bad).append(structure)
    good = good[:most]
    _write(good, output)
    _write(bad, failed_path(output))
    return len(good), len(bad)


def _write(structures: list[Structure], path: Path) -> None:
    """Replace the file; without structures there is none."""
    from ..datasets.write import write

    if not structures:
        path.unlink(missing_ok=True)
    elif path.suffix.lower() in SMILES_SUFFIXES:
        write_text(path, "".join(f"{s.info['smiles']} {s.info['name']}\n" for s in structures))
    else:
        write(path, structures, overwrite=True)


def draw(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Picture of up to 24 valid molecules."""
    from rdkit import Chem
    from rdkit.Chem import Draw

    smiles = [v.isomeric_smiles for v in verdicts if v.valid][:24]
    if not smiles:
        raise UserError("--grid: no valid molecule to draw")
    image = Draw.MolsToGridImage([Chem.MolFromSmiles(s) for s in smiles], molsPerRow=6, subImgSize=(200, 160))
    image.save(path)


def table(report: dict[str, Any]) -> str:
    """The numbers that matter, a few lines."""
    stability, sampling = report["stability"], report["sampling"]
    likeness, checks = report.get("likeness", {}), report.get("posebusters", {})
    rows = [
        ("valid (one fragment, RDKit accepts it)", report["validity"]),
        ("RDKit accepts it", report["sanitised"]),
        ("one fragment", report["connected"]),
        *(
            (f"molecules stable, {name} protocol", stability[name]["molecule"])
            for name in ("corrected", "learned", "legacy")
            if name in stability
        ),
        ("unique among valid", report["uniqueness"]),
        ("novel among unique", report["novelty"]),
        ("pass PoseBusters, of all generated", checks.get("pass")),
        ("KL score (100 = as the reference)", likeness.get("kl", {}).get("value")),
    ]
    lines = [f"{name:42}{100 * value:6.1f} %" for name, value in rows if value is not None]
    lines += [f"  failed {count:6d}  {reason}" for reason, count in report["failures"].items()]
    lines += [_strain_line(report[key]) for key in ("strain", "relaxation") if "energy_drop" in report.get(key, {})]
    if "core" in report:
        core = report["core"]
        lines.append(
            f"fixed part unchanged in {core['n_unchanged']} of {report['n_generated']}, "
            f"largest RMSD {core['largest_rmsd']:.1e} Å"
        )
    if "pocket" in report:
        pocket = report["pocket"]
        lines.append(
            f"{100 * pocket['clashing']:.1f} % come nearer than {pocket['clash_distance']} Å to an atom of the pocket"
        )
    speed = f"{sampling['molecules_per_second']:.1f} molecules/s, {sampling['steps']} steps on {sampling['device']}"
    return "\n".join([f"{report['n_generated']} generated, {speed}", *lines])


def _strain_line(strain: dict[str, Any]) -> str:
    return (
        f"strain by {strain['method']}: median energy drop {strain['energy_drop']['median']:.1f} kcal/mol, "
        f"RMSD {strain['rmsd']['median']:.2f} Å" + (f"; {strain['n_failed']} not relaxed" if strain["n_failed"] else "")
    )
