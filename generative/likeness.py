"""How like the training data a set of molecules is: KL score, nearest neighbours, fragments, scaffolds, FCD."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .extras import require
from .library import MOST_PAIRS, fingerprints, parsed, properties, scaffold, thinned

if TYPE_CHECKING:
    from rdkit.Chem import Mol

MOST_REFERENCE = 5000  # molecules of the reference that are looked at, evenly spread
GRID = 1000  # points at which densities are compared
LEAST = 1e-10  # probability of what never occurs
COMPARED = ("qed", "sa", "logp", "weight")  # properties with a Wasserstein distance


class Likeness:
    """A reference set, described once, with which any number of sets is compared.

    Args:
        smiles: canonical SMILES of the reference.

    Raises:
        ValueError: RDKit reads none of them.
    """

    def __init__(self, smiles: Sequence[str]) -> None:
        self.smiles = thinned(smiles, MOST_REFERENCE)
        self.molecules = parsed(self.smiles)
        if not self.molecules:
            raise ValueError("the reference holds no molecule that RDKit reads")
        self._nearest: dict[int, np.ndarray] = {}
        self._fcd: tuple[Any, dict[str, np.ndarray]] | None = None

    def of(self, smiles: Sequence[str]) -> dict[str, Any]:
        """Numbers of a set of distinct valid molecules, plain data.

        kl: GuacaMol's score, mean of exp(−KL(reference ‖ set)) over nine descriptors and the similarity to the
        nearest molecule of the same set, 1 = the same distributions, with its `parts`. snn: mean similarity to the
        nearest molecule of the reference (ECFP4). fragments, scaffolds: cosine of the counts of BRICS fragments and
        of Murcko scaffolds with rings (None where a side has none). wasserstein: of QED, SA, logP and weight.

        Raises:
            ValueError: no molecules.
        """
        from rdkit import DataStructs
        from scipy.stats import wasserstein_distance

        molecules = parsed(smiles)
        if not molecules:
            raise ValueError("there are no molecules to compare")
        own = fingerprints(molecules)
        parts = self._kl_parts(molecules, own)
        values = properties(molecules)
        return {
            "n_reference": len(self.molecules),
            "kl": {"value": float(np.mean(list(parts.values()))), "parts": parts},
            "snn": float(np.mean([max(DataStructs.BulkTanimotoSimilarity(p, self._prints)) for p in own])),
            "fragments": _cosine(_fragments(molecules), self._fragments),
            "scaffolds": _cosine(_scaffolds(molecules), self._scaffolds),
            "wasserstein": {
                name: float(wasserstein_distance(values[name], self._properties[name]))
                for name in COMPARED
                if values[name]
            },
        }

    def fcd(self, smiles: Sequence[str]) -> float | None:
        """Fréchet ChemNet distance to the reference (package fcd_torch); None for fewer than two molecules.

        It shrinks with the number of molecules: compare only values of equally many molecules.

        Raises:
            UserError: fcd_torch is not installed.
        """
        if self._fcd is None:
            require("FCD")
            from fcd_torch import FCD

            network = FCD(device="cpu")
            self._fcd = network, _quietly(network.precalc, list(self.smiles))
        network, reference = self._fcd
        if len(smiles) < 2 or len(self.smiles) < 2:
            return None
        return float(_quietly(network.metric, reference, _quietly(network.precalc, list(smiles))))

    def _kl_parts(self, molecules: Sequence[Mol], prints: Sequence[Any]) -> dict[str, float]:
        """exp(−KL) of each descriptor."""
        parts = {}
        for name, (continuous, values) in _descriptors(molecules).items():
            divergence = _density_divergence if continuous else _count_divergence
            parts[name] = float(np.exp(-divergence(self._described[name][1], values)))
        own = thinned(prints, MOST_PAIRS)
        if min(len(own), len(self._prints)) > 1:
            parts["nearest"] = float(np.exp(-_density_divergence(self._nearest_of(len(own)), _nearest(own))))
        return parts

    def _nearest_of(self, n: int) -> np.ndarray:
        """Similarities to the nearest of the same set within `n` molecules of the reference: they grow with n."""
        if n not in self._nearest:
            self._nearest[n] = _nearest(thinned(self._prints, n))
        return self._nearest[n]

    @cached_property
    def _prints(self) -> list[Any]:
        return fingerprints(self.molecules)

    @cached_property
    def _described(self) -> dict[str, tuple[bool, np.ndarray]]:
        return _descriptors(self.molecules)

    @cached_property
    def _properties(self) -> dict[str, list[float]]:
        return properties(self.molecules)

    @cached_property
    def _fragments(self) -> Counter[str]:
        return _fragments(self.molecules)

    @cached_property
    def _scaffolds(self) -> Counter[str]:
        return _scaffolds(self.molecules)


def _descriptors(molecules: Sequence[Mol]) -> dict[str, tuple[bool, np.ndarray]]:
    """GuacaMol's nine: name -> (continuous, values)."""
    from rdkit.Chem import Descriptors, GraphDescriptors, rdMolDescriptors

    continuous: dict[str, Callable[[Any], float]] = {
        "complexity": GraphDescriptors.BertzCT,
        "logp": lambda mol: rdMolDescriptors.CalcCrippenDescriptors(mol)[0],
        "weight": Descriptors.MolWt,  # type: ignore[attr-defined]
        "tpsa": rdMolDescriptors.CalcTPSA,
    }
    counted: dict[str, Callable[[Any], float]] = {
        "acceptors": rdMolDescriptors.CalcNumHBA,
        "donors": rdMolDescriptors.CalcNumHBD,
        "rotatable_bonds": rdMolDescriptors.CalcNumRotatableBonds,
        "aliphatic_rings": rdMolDescriptors.CalcNumAliphaticRings,
        "aromatic_rings": rdMolDescriptors.CalcNumAromaticRings,
    }
    return {
        name: (name in continuous, np.array([function(mol) for mol in molecules], dtype=np.float64))
        for name, function in {**continuous, **counted}.items()
    }


def _density_divergence(reference: np.ndarray, values: np.ndarray) -> float:
    """KL(reference ‖ values) of Gaussian kernel densities; of counts where all values of a side are equal."""
    from scipy.stats import entropy, gaussian_kde

    if min(len(reference), len(values)) < 2 or not (np.ptp(reference) and np.ptp(values)):
        return _count_divergence(reference, values)
    both = np.concatenate([reference, values])
    grid = np.linspace(both.min(), both.max(), GRID)
    p, q = (gaussian_kde(side)(grid) + LEAST for side in (reference, values))
    return float(entropy(p, q))


def _count_divergence(reference: np.ndarray, values: np.ndarray) -> float:
    """KL(reference ‖ values) of the shares of each value."""
    from scipy.stats import entropy

    kinds = np.unique(np.concatenate([reference, values]))
    p, q = ((side[:, None] == kinds).mean(0) + LEAST for side in (reference, values))
    return float(entropy(p, q))


def _nearest(prints: Sequence[Any]) -> np.ndarray:
    """Similarity of each molecule to the nearest other one."""
    from rdkit import DataStructs

    best = np.zeros(len(prints))
    for k in range(1, len(prints)):
        row = np.array(DataStructs.BulkTanimotoSimilarity(prints[k], prints[:k]))
        best[k] = row.max()
        np.maximum(best[:k], row, out=best[:k])
    return best


def _fragments(molecules: Sequence[Mol]) -> Counter[str]:
    """How often each BRICS fragment occurs."""
    from rdkit import Chem
    from rdkit.Chem import BRICS

    counts: Counter[str] = Counter()
    for mol in molecules:
        counts.update(Chem.MolToSmiles(BRICS.BreakBRICSBonds(mol), isomericSmiles=False).split("."))
    return counts


def _scaffolds(molecules: Sequence[Mol]) -> Counter[str]:
    counts = Counter(map(scaffold, molecules))
    del counts[""]
    return counts


def _cosine(a: Counter[str], b: Counter[str]) -> float | None:
    """Cosine of the angle between two vectors of counts."""
    norms = [sum(n * n for n in side.values()) ** 0.5 for side in (a, b)]
    if not all(norms):
        return None
    return sum(n * b[key] for key, n in a.items()) / (norms[0] * norms[1])


def _quietly(function: Callable[..., Any], *values: Any) -> Any:
    """A call whose warnings are about numpy's and torch's renamed functions only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*values)
