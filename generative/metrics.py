"""Quality of generated molecules, over all that were generated; why the others failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..datasets.structure import Structure
from .chemistry import Verdict, judge
from .geometry import UNITS, Distributions
from .library import library_metrics
from .vocabulary import Vocabulary, atom_values


def evaluate(
    structures: Sequence[Structure],
    vocabulary: Vocabulary,
    *,
    reference_smiles: Collection[str] = (),
    reference: Distributions | None = None,
    verdicts: Sequence[Verdict] | None = None,
) -> dict[str, Any]:
    """Numbers for a report, plain and nested, shares in 0..1.

    Args:
        structures: all that were generated.
        vocabulary: of the training data, for total variations of elements, charges and bonds.
        reference_smiles: canonical SMILES (:func:`.chemistry.canonical_smiles`) of the training data, for novelty.
        reference: distributions of the training data, for Wasserstein distances.
        verdicts: of :func:`.chemistry.judge`, if at hand.

    Raises:
        ValueError: no structures.
    """
    if not structures:
        raise ValueError("there are no structures to evaluate")
    implicit = vocabulary.implicit_hydrogens
    if verdicts is None:
        verdicts = [judge(s, implicit_hydrogens=implicit) for s in structures]
    smiles = [v.smiles for v in verdicts if v.valid]
    distinct = set(smiles)
    result: dict[str, Any] = {
        "n_generated": len(structures),
        "validity": _share(v.valid for v in verdicts),
        "sanitised": _share(v.sanitised for v in verdicts),
        "connected": _share(v.n_fragments == 1 for v in verdicts),
        "complete": _share(v.complete for v in verdicts),
        "mean_fragments": float(np.mean([v.n_fragments for v in verdicts])),
        "stability": {
            "legacy": {
                "atom": float(np.concatenate([v.stable_legacy for v in verdicts]).mean()),
                "molecule": _share(v.molecule_stable_legacy for v in verdicts),
            },
            "corrected": {
                "atom": float(np.concatenate([v.stable for v in verdicts]).mean()),
                "molecule": _share(v.molecule_stable for v in verdicts),
            },
        },
        "uniqueness": len(distinct) / len(smiles) if smiles else None,
        "novelty": None,
        "total_variation": total_variations(structures, vocabulary),
        "failures": failures(verdicts),
    }
    if reference_smiles and distinct:
        known = set(reference_smiles)
        result["novelty"] = _share(s not in known for s in distinct)
    if distinct:
        result["library"] = library_metrics(sorted(distinct), sorted(reference_smiles))
    if reference is not None:
        distances = Distributions.of(structures).wasserstein(reference)
        result["wasserstein"] = {k: {"value": v, "unit": UNITS[k]} for k, v in distances.items()}
    return result


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
    )
    counts: Counter[str] = Counter()
    for verdict in verdicts:
        if not verdict.valid:
            text = verdict.reason.lower()
            counts[next((name for key, name in kinds if key in text), "other")] += 1
    return dict(counts.most_common())


def _share(flags: Any) -> float:
    return float(np.mean([bool(flag) for flag in flags]))
