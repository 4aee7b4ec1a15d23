"""Quality of generated molecules, over all that were generated; why the others failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..datasets.errors import UserError
from ..datasets.structure import Structure
from .chemistry import Verdict, judge
from .geometry import UNITS, Distributions
from .library import library_metrics
from .reference import Reference
from .valences import ValenceTable
from .vocabulary import Vocabulary, atom_values

PROTOCOLS = {
    "legacy": "sum of bond orders, aromatic bonds as 1, in the published table; fragments do not matter",
    "corrected": "Kekulé structure, sum of bond orders in a table of usual valences, one fragment",
    "learned": "(aromatic bonds, sum of the other orders) as atoms of that element and charge have it in the training "
    "data, one fragment",
}
"""The ways to judge the stability of atoms and molecules, by name."""


def evaluate(
    structures: Sequence[Structure],
    vocabulary: Vocabulary,
    *,
    reference: Reference | None = None,
    verdicts: Sequence[Verdict] | None = None,
    fcd: bool = False,
) -> dict[str, Any]:
    """Numbers for a report, plain and nested, shares in 0..1.

    Args:
        structures: all that were generated.
        vocabulary: of the training data, for total variations of elements, charges and bonds.
        reference: the training data: its distributions for Wasserstein distances, its valences for the learned
            protocol, its SMILES for novelty and likeness, those that were kept aside for memorisation.
        verdicts: of :func:`.chemistry.judge`, if at hand.
        fcd: also the Fréchet ChemNet distance, which takes a while; needs the reference's SMILES.

    Raises:
        ValueError: no structures.
        UserError: `fcd` without SMILES, or without its package.
    """
    if not structures:
        raise ValueError("there are no structures to evaluate")
    reference = reference or Reference()
    if fcd and not reference.smiles:
        raise UserError("FCD compares with SMILES of the training data: name them by --reference")
    if verdicts is None:
        verdicts = [judge(s, implicit_hydrogens=vocabulary.implicit_hydrogens) for s in structures]
    smiles = [v.smiles for v in verdicts if v.valid]
    distinct = sorted(set(smiles))
    result: dict[str, Any] = {
        "n_generated": len(structures),
        "validity": _share(v.valid for v in verdicts),
        "sanitised": _share(v.sanitised for v in verdicts),
        "connected": _share(v.n_fragments == 1 for v in verdicts),
        "complete": _share(v.complete for v in verdicts),
        "mean_fragments": float(np.mean([v.n_fragments for v in verdicts])),
        "stability": stability(structures, verdicts, reference.valences),
        "uniqueness": len(distinct) / len(smiles) if smiles else None,
        "novelty": None,
        "total_variation": total_variations(structures, vocabulary),
        "failures": failures(verdicts),
    }
    if distinct:
        result["library"] = library_metrics(distinct)
    if distinct and reference.smiles:
        result["novelty"] = _share(s not in reference.known for s in distinct)
        result["likeness"] = reference.likeness.of(distinct)
        if fcd:
            result["likeness"]["fcd"] = reference.likeness.fcd(distinct)
        if reference.kept:
            result["memory"] = memory(distinct, reference.known, reference.kept)
    if reference.distributions is not None:
        distances = Distributions.of(structures).wasserstein(reference.distributions)
        result["wasserstein"] = {k: {"value": v, "unit": UNITS[k]} for k, v in distances.items()}
    return result


def stability(
    structures: Sequence[Structure], verdicts: Sequence[Verdict], valences: ValenceTable | None
) -> dict[str, dict[str, Any]]:
    """Shares of stable atoms and molecules by each protocol of :data:`PROTOCOLS`, the learned one if `valences`."""
    atoms = {
        "legacy": [v.stable_legacy for v in verdicts],
        "corrected": [v.stable for v in verdicts],
    }
    if valences is not None:
        atoms["learned"] = [valences.allows(s) for s in structures]
    whole = [v.n_fragments == 1 for v in verdicts]
    return {
        name: {
            "atom": float(np.concatenate(found).mean()),
            "molecule": _share(
                stable.all() and (one or name == "legacy") for stable, one in zip(found, whole, strict=True)
            ),
            "protocol": PROTOCOLS[name],
        }
        for name, found in atoms.items()
    }


def memory(drawn: Collection[str], trained: Collection[str], kept: Collection[str]) -> dict[str, float | None]:
    """Shares of the training molecules and of the kept ones that were drawn, and their ratio.

    A generator that has learned the distribution draws a molecule as often whether it was trained on it or not: the
    ratio is 1; one that recites has a larger one. Molecules in both sets count as trained on.

    Args:
        drawn, trained, kept: canonical SMILES.
    """
    found, known = set(drawn), set(trained)
    fresh = set(kept) - known
    of_trained = len(found & known) / max(len(known), 1)
    of_kept = len(found & fresh) / max(len(fresh), 1)
    return {"trained": of_trained, "kept": of_kept, "ratio": of_trained / of_kept if of_kept else None}


def total_variations(structures: Sequence[Structure], vocabulary: Vocabulary) -> dict[str, float]:
    """Σ |p_generated − p_data| over the classes of each variable (no half, as published), bonds over all pairs."""
    result = {}
    for name, classes in vocabulary.atoms.items():
        values = np.concatenate([atom_values(s, name) for s in structures])
        shares = np.array([(values == v).mean() for v in classes.values])
        result[name] = float(np.abs(shares - classes.frequencies).sum())
    orders = np.concatenate([s.bonds[:, 2] for s in structures if s.bonds is not None])
    pairs = sum(s.n_atoms * (s.n_atoms - 1) // 2 for s in structures)
    counts = [(orders == v).sum() if v else pairs - len(orders) for v in vocabulary.bonds.values]
    shares = np.array(counts) / max(pairs, 1)
    result["bond"] = float(np.abs(shares - vocabulary.bonds.frequencies).sum())
    return result


def failures(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How often molecules failed for which kind of reason, the most frequent first."""
    kinds = (
        ("valence", "valence too large"),
        ("kekulize", "aromatic bonds without Kekulé structure"),
        ("non-ring atom", "aromatic atom outside a ring"),
        ("fragments", "several fragments"),
        ("coordinates", "coordinates lost"),
    )
    counts: Counter[str] = Counter()
    for verdict in verdicts:
        if not verdict.valid:
            text = verdict.reason.lower()
            counts[next((name for key, name in kinds if key in text), "other")] += 1
    return dict(counts.most_common())


def _share(flags: Any) -> float:
    return float(np.mean([bool(flag) for flag in flags]))
