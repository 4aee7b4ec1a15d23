"""What generated molecules are compared with: distributions, valences and SMILES of the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.errors import DataError
from ..datasets.structure import Structure
from .chemistry import canonical_smiles, judge
from .data import SMILES_SUFFIXES, MoleculeOptions, read_molecules, smiles_of
from .geometry import Distributions
from .likeness import Likeness
from .valences import ValenceTable
from .vocabulary import Vocabulary

MEASURED = 5000  # molecules whose geometries are measured, evenly spread


@dataclass(frozen=True)
class Reference:
    """The training data as far as they are known; what is absent makes the numbers absent that need it.

    distributions: of lengths, angles, … . valences: which ones atoms have. smiles: canonical, as
    :func:`.chemistry.canonical_smiles` writes them, distinct. kept: likewise of molecules that were not trained on.
    """

    distributions: Distributions | None = None
    valences: ValenceTable | None = None
    smiles: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @classmethod
    def of(cls, structures: Sequence[Structure], smiles: Sequence[str] = ()) -> Reference:
        """From molecules in the form in which they are learned."""
        some = np.unique(np.linspace(0, len(structures) - 1, min(MEASURED, len(structures))).astype(int))
        return cls(
            Distributions.of(structures[k] for k in some),
            ValenceTable.of(structures),
            tuple(dict.fromkeys(smiles)),
        )

    @classmethod
    def of_header(cls, header: Mapping[str, Any]) -> Reference:
        """What a checkpoint keeps of its training data."""
        distributions, valences = header.get("reference"), header.get("valences")
        return cls(
            None if distributions is None else Distributions.from_dict(distributions),
            None if valences is None else ValenceTable.from_dict(valences),
        )

    @classmethod
    def of_file(cls, path: str | Path, vocabulary: Vocabulary) -> Reference:
        """From a file of SMILES (these alone), or of molecules with bonds and geometries (everything).

        Raises:
            DataError: unreadable, or no usable molecule.
        """
        name = Path(path).name.lower().removesuffix(".gz")
        if name.endswith(SMILES_SUFFIXES):
            return cls(smiles=_canonical(path))
        implicit, aromatic = vocabulary.implicit_hydrogens, 4 in vocabulary.bonds.values
        options = MoleculeOptions(hydrogens="remove" if implicit else "keep", aromatic=aromatic)
        structures, _ = read_molecules(path, options)
        verdicts = (judge(s, implicit_hydrogens=implicit) for s in structures)
        return cls.of(structures, [v.smiles for v in verdicts])

    def or_else(self, other: Reference) -> Reference:
        """This one, with what it lacks taken from `other`."""
        return replace(
            self,
            distributions=self.distributions or other.distributions,
            valences=self.valences or other.valences,
            smiles=self.smiles or other.smiles,
            kept=self.kept or other.kept,
        )

    def to_header(self) -> dict[str, Any]:
        """What goes into a checkpoint: everything but the SMILES."""
        found: dict[str, Any] = {}
        if self.distributions is not None:
            found["reference"] = self.distributions.to_dict()
        if self.valences is not None:
            found["valences"] = self.valences.to_dict()
        return found

    @cached_property
    def known(self) -> frozenset[str]:
        """The SMILES, to look a molecule up."""
        return frozenset(self.smiles)

    @cached_property
    def likeness(self) -> Likeness:
        """Comparison of sets with the SMILES; there must be some."""
        return Likeness(self.smiles)


def _canonical(path: str | Path) -> tuple[str, ...]:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecules = [Chem.MolFromSmiles(text) for text in smiles_of(path)]
    found = tuple(dict.fromkeys(canonical_smiles(mol) for mol in molecules if mol is not None))
    if not found:
        raise DataError("no SMILES that RDKit reads", str(path))
    return found
