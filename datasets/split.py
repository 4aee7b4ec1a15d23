"""Splits of a data set into parts: random, by group, by formula, by scaffold; the same for the same seed.

With groups (formula, scaffold, config_type …) no group is torn apart, so that a test set holds what training has
never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .errors import DataError
from .structure import Structure


def split(
    source: Sequence[Structure], fractions: Sequence[float], *, by: str = "random", seed: int = 0
) -> list[np.ndarray]:
    """Sorted frame numbers of each part.

    fractions: one per part, summing to 1 (0.8, 0.1, 0.1). by: "random"; "formula"; "scaffold" (Murcko, needs bonds
    or info["smiles"]); any other text is a key of `info` ("config_type", "group").

    Raises:
        DataError: bad fractions, a key that frames lack, a part that would be empty.
    """
    shares = check_fractions(fractions)
    if by == "random":
        order = np.random.default_rng(seed).permutation(len(source))
        bounds = np.round(np.cumsum([0, *shares]) * len(source)).astype(int)
        parts = [np.sort(order[a:b]) for a, b in pairwise(bounds)]
    else:
        parts = split_groups([group_key(by)(s, i) for i, s in enumerate(source)], shares, seed)
    for number, part in enumerate(parts):
        if not len(part):
            raise DataError(
                f"part {number} (fraction {fractions[number]}) of {len(source)} frames by {by} is empty: change the "
                "fractions, or split by something with more groups"
            )
    return parts


def check_fractions(fractions: Sequence[float]) -> np.ndarray:
    """The fractions as an array.

    Raises:
        DataError: not positive, or not summing to 1.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise DataError(f"fractions {list(fractions)}: give positive numbers that sum to 1, e.g. 0.8 0.1 0.1")
    return shares


def split_groups(keys: Sequence[Any], fractions: np.ndarray, seed: int) -> list[np.ndarray]:
    """Whole groups dealt out, in random order, each to the part that lacks the largest share of its aim."""
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    names = list(groups)
    shuffled = np.random.default_rng(seed).permutation(len(names)).tolist()
    # Large groups first, so that the small ones can level the parts.
    order = sorted(shuffled, key=lambda g: -len(groups[names[g]]))
    aims = fractions * len(keys)
    filled = np.zeros(len(fractions))
    parts: list[list[int]] = [[] for _ in fractions]
    for group in order:
        members = groups[names[group]]
        part = int(np.argmax((aims - filled) / aims))
        parts[part] += members
        filled[part] += len(members)
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def group_key(by: str) -> Callable[[Structure, int], Any]:
    """The function (structure, frame number) -> group that `by` names."""
    if by == "formula":
        return lambda structure, _: structure.formula
    if by == "scaffold":
        return scaffold

    def value(structure: Structure, frame: int) -> Any:
        if by not in structure.info:
            present = ", ".join(sorted(structure.info)) or "none"
            raise DataError(f"no key {by!r} in info to split by; present: {present}", f"frame {frame}")
        return str(structure.info[by])

    return value


def scaffold(structure: Structure, frame: int) -> str:
    """SMILES of the Murcko scaffold (rings and linkers; "" for molecules without rings).

    Source: Bemis and Murcko, J. Med. Chem. 1996, 39, 2887; RDKit's implementation.

    Raises:
        DataError: neither bonds nor a SMILES that RDKit can read.
    """
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    smiles = structure.info.get("smiles")
    if isinstance(smiles, str):
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            raise DataError(f"RDKit cannot read the SMILES {smiles!r:.60}", f"frame {frame}")
    elif structure.bonds is not None:
        mol = structure.to_rdkit()
    else:
        raise DataError("a scaffold needs bonds or info['smiles']; split by formula instead", f"frame {frame}")
    return MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.RemoveHs(mol))
