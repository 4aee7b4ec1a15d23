"""Is a generated structure a molecule? RDKit's verdict with its reason, and valence stability by two protocols.

"legacy" is the check of MiDi and EQGAT-diff as published, in which an aromatic bond counts as 1 (its 1.5 was cut off
by an integer tensor); "corrected" kekulises first, takes only the valences that atoms really have, and counts
molecules of several fragments as failures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..datasets.elements import NUMBERS
from ..datasets.structure import Structure
from .geometry import superposed_rmsd
from .valences import AROMATIC

if TYPE_CHECKING:
    from rdkit.Chem import Mol

LARGEST_SHIFT = 1e-3  # Å, RMSD up to which a fixed part counts as unchanged
MOST_MATCHES = 1000
FARTHEST = 1e4  # Å, what the columns of an SD file hold
LOST = "coordinates are no numbers or too large"

_BY_CHARGE: dict[str, dict[int, tuple[int, ...]]] = {
    "H": {0: (1,), 1: (0,), -1: (0,)},
    "C": {0: (3, 4), 1: (3,), -1: (3,)},
    "N": {0: (2, 3), 1: (2, 3, 4), -1: (2,)},
    "O": {0: (2,), 1: (3,), -1: (1,)},
    "F": {0: (1,), -1: (0,)},
    "B": {0: (3,)},
    "Al": {0: (3,)},
    "Si": {0: (4,)},
    "P": {0: (3, 5), 1: (4,)},
    "S": {0: (2, 6), 1: (2, 3), 2: (4,), 3: (5,), -1: (3,)},
    "Cl": {0: (1,)},
    "As": {0: (3,)},
    "Se": {0: (2, 4, 6)},
    "Br": {0: (1,), 1: (2,)},
    "I": {0: (1,)},
    "Hg": {0: (1, 2)},
    "Bi": {0: (3, 5)},
}
LEGACY = {(NUMBERS[e], q): v for e, table in _BY_CHARGE.items() for q, v in table.items()}
"""Allowed sums of bond orders by (atomic number, formal charge), as published."""

CORRECTED = {
    **LEGACY,
    (NUMBERS["C"], 0): (4,),
    (NUMBERS["N"], 0): (3,),
    (NUMBERS["N"], 1): (4,),
    (NUMBERS["S"], 0): (2, 4, 6),
    (NUMBERS["S"], 1): (3, 5),
    (NUMBERS["S"], -1): (1,),
    (NUMBERS["Cl"], -1): (0,),
    (NUMBERS["Br"], -1): (0,),
    (NUMBERS["I"], -1): (0,),
}
"""The same without what is there for truncated aromatic bonds only; sulfur and halides as chemistry has them."""


@dataclass(frozen=True)
class Verdict:
    """What is right and wrong with one structure.

    valid: one fragment that RDKit sanitises. sanitised: RDKit accepts bonds and charges. n_fragments: parts that no
    bond connects. complete: valid and no atom lacks a bond (radical). reason: why it is not valid, "" if it is.
    smiles: canonical, without stereo and hydrogens; "" if not sanitised; isomeric_smiles: with the stereo of the
    geometry. stable_legacy, stable: ``(n,)`` bool per atom by the two protocols.
    """

    valid: bool
    sanitised: bool
    complete: bool
    n_fragments: int
    reason: str
    smiles: str
    isomeric_smiles: str
    stable_legacy: np.ndarray
    stable: np.ndarray

    @property
    def molecule_stable_legacy(self) -> bool:
        return bool(self.stable_legacy.all())

    @property
    def molecule_stable(self) -> bool:
        """By the corrected protocol: every atom, and one fragment."""
        return bool(self.stable.all()) and self.n_fragments == 1


def judge(structure: Structure, *, implicit_hydrogens: bool) -> Verdict:
    """The verdict on one structure with bonds and formal charges.

    implicit_hydrogens: atoms may be filled up with hydrogens, and then no valence is too small.
    """
    mol, reason = None, LOST
    if located(structure):
        mol, reason = sanitised(structure, implicit_hydrogens=implicit_hydrogens)
    parts = n_fragments(structure)
    if not reason and parts > 1:
        reason = f"{parts} fragments"
    radical = mol is not None and any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    return Verdict(
        valid=not reason,
        sanitised=mol is not None,
        complete=not reason and not radical,
        n_fragments=parts,
        reason=reason,
        smiles="" if mol is None else canonical_smiles(mol),
        isomeric_smiles="" if mol is None else canonical_smiles(mol, stereo=True),
        stable_legacy=_stable(structure, _valences(structure), LEGACY, implicit_hydrogens),
        stable=_stable(structure, _kekule_valences(structure, mol), CORRECTED, implicit_hydrogens),
    )


def located(structure: Structure) -> bool:
    """Whether all coordinates are numbers that a file can hold: a network can run away."""
    return bool((np.abs(structure.positions) < FARTHEST).all())


def sanitised(structure: Structure, *, implicit_hydrogens: bool) -> tuple[Mol | None, str]:
    """(molecule, "") or (None, why RDKit refuses it); with `implicit_hydrogens` RDKit fills up the valences."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():  # the reason is returned
        mol = structure.to_rdkit(sanitize=False)
        if implicit_hydrogens:
            for atom in mol.GetAtoms():
                atom.SetNoImplicit(False)
        try:
            Chem.SanitizeMol(mol)
        except ValueError as error:
            return None, " ".join(str(error).split())
        Chem.AssignStereochemistryFrom3D(mol)
    return mol, ""


def canonical_smiles(mol: Mol, *, stereo: bool = False) -> str:
    """Canonical SMILES without hydrogen atoms; without stereo marks it is what uniqueness and novelty compare."""
    from rdkit import Chem, rdBase

    which = Chem.RemoveHsParameters()
    which.removeDefiningBondStereo = True  # type: ignore[assignment]  # the hydrogen of an imine, which would stay
    with rdBase.BlockLogs():
        bare = Chem.RemoveHs(mol, which, sanitize=False)
        for atom in bare.GetAtoms():  # explicit or implicit: written the same
            atom.SetNoImplicit(False)
            if not atom.GetNumRadicalElectrons() and not atom.GetIsAromatic():
                atom.SetNumExplicitHs(0)
        if Chem.SanitizeMol(bare, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            bare = mol
        return str(Chem.MolToSmiles(bare, isomericSmiles=stereo))


def core_rmsd(structure: Structure, core: Structure) -> float | None:
    """RMSD (Å) of the core inside a molecule from the core, superposed, over the best match; None: it is not there.

    The match is of elements, charges and bonds as they stand, also in molecules that RDKit does not sanitise.
    """
    mol, query = structure.to_rdkit(sanitize=False), core.to_rdkit(sanitize=False)
    matches = [
        match
        for match in mol.GetSubstructMatches(query, uniquify=False, maxMatches=MOST_MATCHES)
        if all(
            mol.GetAtomWithIdx(k).GetFormalCharge() == atom.GetFormalCharge()
            for k, atom in zip(match, query.GetAtoms(), strict=True)
        )
    ]
    return min((superposed_rmsd(structure.positions[list(m)], core.positions) for m in matches), default=None)


def n_fragments(structure: Structure) -> int:
    """Number of parts that no bond connects."""
    return len(set(_parts(structure)))


def largest_fragment(structure: Structure) -> Structure:
    """The part with the most atoms (of equals, the first), with its bonds and per-atom arrays."""
    labels = np.array(_parts(structure), dtype=np.int64)
    keep = labels == np.argmax(np.bincount(labels))
    new = np.cumsum(keep) - 1
    bonds = structure.bonds
    if bonds is not None:
        inside = bonds[keep[bonds[:, 0]]]
        bonds = np.column_stack([new[inside[:, 0]], new[inside[:, 1]], inside[:, 2]])
    arrays = {key: value[keep] for key, value in structure.arrays.items()}
    charges = arrays.get("formal_charges")
    return Structure(
        numbers=structure.numbers[keep],
        positions=structure.positions[keep],
        charge=None if charges is None else float(charges.sum()),
        bonds=bonds,
        arrays=arrays,
        info=dict(structure.info),
    )


def _parts(structure: Structure) -> list[int]:
    """For each atom the first atom of its part. A plain loop: for molecules many times faster than a sparse graph."""
    first = list(range(structure.n_atoms))

    def root(k: int) -> int:
        while first[k] != k:
            first[k] = k = first[first[k]]
        return k

    bonds = structure.bonds if structure.bonds is not None else np.zeros((0, 3), dtype=np.int64)
    for i, j in bonds[:, :2].tolist():
        a, b = root(i), root(j)
        first[max(a, b)] = min(a, b)
    return [root(k) for k in range(structure.n_atoms)]


def _valences(structure: Structure) -> np.ndarray:
    """Sums of bond orders ``(n,)``, an aromatic bond as 1."""
    if structure.bonds is None:
        return np.zeros(structure.n_atoms, dtype=np.int64)
    order = np.where(structure.bonds[:, 2] == AROMATIC, 1, structure.bonds[:, 2])
    sums = np.zeros(structure.n_atoms, dtype=np.int64)
    for column in (0, 1):
        np.add.at(sums, structure.bonds[:, column], order)
    return sums


def _kekule_valences(structure: Structure, mol: Mol | None) -> np.ndarray:
    """Sums of bond orders after kekulisation; −1 for atoms of aromatic bonds that cannot be kekulised."""
    from rdkit import Chem

    aromatic = structure.bonds is not None and (structure.bonds[:, 2] == AROMATIC).any()
    if not aromatic:
        return _valences(structure)
    if mol is None:
        sums = _valences(structure)
        sums[np.unique(structure.bonds[structure.bonds[:, 2] == AROMATIC][:, :2])] = -1  # type: ignore[index]
        return sums
    plain = Chem.Mol(mol)
    Chem.Kekulize(plain, clearAromaticFlags=True)
    sums = np.zeros(structure.n_atoms, dtype=np.int64)
    for bond in plain.GetBonds():
        for end in (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()):
            sums[end] += int(bond.GetBondTypeAsDouble())
    return sums


def _stable(
    structure: Structure, valences: np.ndarray, table: dict[tuple[int, int], tuple[int, ...]], fill: bool
) -> np.ndarray:
    """Whether each atom has an allowed valence; with `fill`, at most the largest allowed one."""
    charges = structure.arrays.get("formal_charges", np.zeros(structure.n_atoms, dtype=np.int64))
    allowed = [table.get((int(z), int(q)), ()) for z, q in zip(structure.numbers, charges, strict=True)]
    if fill:
        return np.array([0 <= v <= max(a, default=-1) for v, a in zip(valences, allowed, strict=True)], dtype=bool)
    return np.array([v in a for v, a in zip(valences, allowed, strict=True)], dtype=bool)
