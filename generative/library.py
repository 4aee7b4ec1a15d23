"""Numbers of a set of molecules as a chemist's library: diversity, nearest neighbours, scaffolds, QED, SA."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rdkit.Chem import Mol

BITS, RADIUS = 4096, 2  # ECFP4
MOST_PAIRS = 2000  # molecules whose pairs are compared


def library_metrics(smiles: Sequence[str], reference: Sequence[str] = ()) -> dict[str, Any]:
    """Means over the molecules of valid canonical SMILES; plain data.

    diversity: 1 − mean Tanimoto similarity of ECFP4 of all pairs (of at most MOST_PAIRS molecules, the first).
    scaffolds: distinct Murcko scaffolds per molecule. qed. sa: (10 − score) / 9, 1 = easy to make; None where RDKit
    came without its contributed scorer. nearest: mean similarity to the nearest reference molecule (SNN).

    Raises:
        ValueError: no molecules.
    """
    from rdkit import Chem, DataStructs
    from rdkit.Chem import QED, rdFingerprintGenerator
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    if not smiles:
        raise ValueError("there are no molecules to describe")
    molecules = [Chem.MolFromSmiles(text) for text in smiles]
    molecules = [mol for mol in molecules if mol is not None]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    prints = [generator.GetFingerprint(mol) for mol in molecules[:MOST_PAIRS]]
    pairs = [DataStructs.BulkTanimotoSimilarity(prints[k], prints[:k]) for k in range(1, len(prints))]
    nearest = None
    if reference:
        known = [generator.GetFingerprint(m) for m in map(Chem.MolFromSmiles, reference) if m is not None]
        nearest = float(np.mean([max(DataStructs.BulkTanimotoSimilarity(p, known)) for p in prints]))
    scorer = sa_scorer()
    return {
        "n_molecules": len(molecules),
        "diversity": 1 - float(np.mean(np.concatenate(pairs))) if pairs else None,
        "scaffolds": len({MurckoScaffoldSmiles(mol=mol) for mol in molecules}) / len(molecules),
        "qed": float(np.mean([QED.qed(mol) for mol in molecules])),
        "sa": None if scorer is None else float(np.mean([(10 - scorer(mol)) / 9 for mol in molecules])),
        "nearest": nearest,
    }


def sa_scorer() -> Callable[[Mol], float] | None:
    """RDKit's contributed score of synthetic accessibility, 1 (easy) … 10; None where it is not installed."""
    from importlib import util

    from rdkit import RDConfig

    path = os.path.join(RDConfig.RDContribDir, "SA_Score", "sascorer.py")
    if not os.path.exists(path):
        return None
    if "rdkit_sascorer" not in sys.modules:
        spec = util.spec_from_file_location("rdkit_sascorer", path)
        if spec is None or spec.loader is None:
            return None
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["rdkit_sascorer"] = module
    score: Callable[[Mol], float] = sys.modules["rdkit_sascorer"].calculateScore
    return score
