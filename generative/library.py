"""Numbers of a set of molecules as a chemist's library: diversity, scaffolds, QED, SA, logP, rule of five."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from rdkit.Chem import Mol

T = TypeVar("T")
BITS, RADIUS = 4096, 2  # ECFP4
MOST_PAIRS = 2000  # molecules whose pairs are compared
RULE_OF_FIVE = {"weight": 500.0, "logp": 5.0, "donors": 5.0, "acceptors": 10.0}


def library_metrics(smiles: Sequence[str]) -> dict[str, Any]:
    """Means over the molecules of valid canonical SMILES; plain data.

    diversity: 1 − mean Tanimoto similarity of ECFP4 (4096 bits) of all pairs of at most MOST_PAIRS molecules, spread
    evenly; diversity_2: 1 − the root of the mean square similarity (MOSES' IntDiv1 and IntDiv2 without the pairs of a
    molecule with itself). scaffolds: distinct Murcko scaffolds per molecule. qed. sa: (10 − score) / 9, 1 = easy to
    make; None where RDKit came without its contributed scorer. logp, weight (g/mol). rule_of_five: share that meets
    Lipinski's four limits.

    Raises:
        ValueError: no molecules.
    """
    from rdkit import DataStructs

    if not smiles:
        raise ValueError("there are no molecules to describe")
    molecules = parsed(smiles)
    prints = fingerprints(thinned(molecules, MOST_PAIRS))
    rows = [DataStructs.BulkTanimotoSimilarity(prints[k], prints[:k]) for k in range(1, len(prints))]
    pairs = np.concatenate(rows) if rows else np.zeros(0)
    values = {name: np.array(v) for name, v in properties(molecules).items()}
    means = {name: float(v.mean()) if len(v) else None for name, v in values.items()}
    return {
        "n_molecules": len(molecules),
        "diversity": 1 - float(pairs.mean()) if len(pairs) else None,
        "diversity_2": 1 - float(np.sqrt(np.square(pairs).mean())) if len(pairs) else None,
        "scaffolds": len(set(map(scaffold, molecules))) / len(molecules),
        **{name: means[name] for name in ("qed", "sa", "logp", "weight")},
        "rule_of_five": float(np.mean(np.all([values[name] <= limit for name, limit in RULE_OF_FIVE.items()], 0))),
    }


def properties(molecules: Sequence[Mol]) -> dict[str, list[float]]:
    """qed, sa (empty where its scorer is not installed), logp, weight, donors and acceptors of each molecule."""
    from rdkit.Chem import QED, Descriptors, rdMolDescriptors

    scorer = sa_scorer()
    return {
        "qed": [QED.qed(mol) for mol in molecules],
        "sa": [] if scorer is None else [(10 - scorer(mol)) / 9 for mol in molecules],
        "logp": [rdMolDescriptors.CalcCrippenDescriptors(mol)[0] for mol in molecules],
        "weight": [Descriptors.MolWt(mol) for mol in molecules],  # type: ignore[attr-defined]
        "donors": [float(rdMolDescriptors.CalcNumHBD(mol)) for mol in molecules],
        "acceptors": [float(rdMolDescriptors.CalcNumHBA(mol)) for mol in molecules],
    }


def parsed(smiles: Sequence[str]) -> list[Mol]:
    """RDKit's molecules of those SMILES that it reads."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        return [mol for mol in map(Chem.MolFromSmiles, smiles) if mol is not None]


def fingerprints(molecules: Sequence[Mol]) -> list[Any]:
    """ECFP4 bit vectors."""
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    return [generator.GetFingerprint(mol) for mol in molecules]


def scaffold(mol: Mol) -> str:
    """SMILES of the Murcko scaffold, "" for a chain."""
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    return str(MurckoScaffoldSmiles(mol=mol))


def thinned(items: Sequence[T], most: int) -> Sequence[T]:
    """At most that many of the items, evenly spread."""
    if len(items) <= most:
        return items
    return [items[k] for k in np.linspace(0, len(items) - 1, most).astype(int)]


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
