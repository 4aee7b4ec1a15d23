"""What `tesseral generate` is asked to aim at: properties, and a pocket to lie in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..datasets.structure import Structure
    from ..generative.model import EqgatDiff

CLASH = 2.5  # Å, heavy atoms of molecule and pocket nearer than this
MOST = 2  # times the largest training pocket: a larger file must be cut


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the wishes."""
    parser.add_argument(
        "--property",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a value to aim at, of a model trained with data.condition, e.g. gap=6.5; may be repeated",
    )
    parser.add_argument(
        "--pocket",
        metavar="P.pdb",
        help="protein or pocket that the molecules lie in, for a model trained with pockets",
    )
    parser.add_argument(
        "--reference-ligand", metavar="L.sdf", help="with --pocket, a molecule in the place that is meant"
    )
    parser.add_argument(
        "--ligand-center",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="with --pocket, the middle of the place that is meant, Å",
    )


def wishes(args: argparse.Namespace, model: EqgatDiff) -> dict[str, Any]:
    """Keywords of `model.sample`; says what cannot be expected to come true.

    Raises:
        UserError: options that do not fit together or the model, or files that cannot be read.
    """
    properties = _properties(args.property)
    if model.conditions is not None:
        for warning in model.conditions.check(properties):
            print(f"tesseral: warning: {warning}", file=sys.stderr)
    return {"properties": properties, "pocket": _pocket(args, model)}


def clashes(structures: Sequence[Structure], pocket: Structure) -> dict[str, Any]:
    """How near the molecules come to the pocket: share that clashes, and the median of the nearest distances."""
    nearest = [
        float(np.linalg.norm(pocket.positions[:, None] - s.positions[s.numbers > 1], axis=-1).min(initial=np.inf))
        for s in structures
    ]
    return {
        "pocket_atoms": pocket.n_atoms,
        "clashing": float(np.mean([d < CLASH for d in nearest])),
        "clash_distance": CLASH,
        "median_nearest_distance": float(np.median(nearest)),
        "unit": "Å",
    }


def _properties(texts: Sequence[str]) -> dict[str, float]:
    from ..datasets.errors import UserError

    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise UserError(f"--property {text}: expected NAME=NUMBER, as gap=6.5")
    return found


def _pocket(args: argparse.Namespace, model: EqgatDiff) -> Structure | None:
    from ..datasets.errors import UserError
    from ..datasets.read import read
    from ..generative.protein import cut, read_protein

    reference, center = args.reference_ligand, args.ligand_center
    if args.pocket is None:
        if reference is not None or center is not None:
            raise UserError("--reference-ligand and --ligand-center say where in a protein: give it by --pocket")
        return None
    if reference is not None and center is not None:
        raise UserError("give the place by --reference-ligand or by --ligand-center, not by both")
    facts, protein = model.pockets, read_protein(args.pocket)
    if facts is None:
        raise UserError(f"{args.model} was trained on molecules without pockets: leave --pocket away")
    if reference is not None:
        molecule = read(reference, index=0)[0]
        return cut(protein, molecule.positions[molecule.numbers > 1], facts.radius)
    if center is not None:
        return cut(protein, np.array([center]), facts.radius + facts.reach)
    largest = max(n for n, _ in facts.sizes)
    if protein.n_atoms > MOST * largest:
        raise UserError(
            f"{args.pocket} holds {protein.n_atoms} heavy atoms, the pockets of the training had up to {largest}: say "
            "where the molecules shall lie by --reference-ligand or --ligand-center"
        )
    return protein
