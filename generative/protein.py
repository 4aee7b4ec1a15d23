"""Pockets from PDB files: which atoms of a protein are around a molecule."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.errors import DataError
from ..datasets.structure import Structure
from .data import MoleculeOptions, read_molecules

BACKBONE = {"N", "CA", "C"}
WATER = {"HOH", "WAT", "DOD", "TIP", "TIP3", "SOL"}
TOUCHING = 1.0  # Å, an atom of the file so near to the reference molecule is the molecule's own


def read_protein(path: str | Path) -> Structure:
    """Heavy atoms of the amino acids and of single ions in a PDB file (also .gz); no water, no other hetero groups.

    `arrays["residue"]` numbers the residues. Of alternative locations the first one in the file counts.

    Raises:
        DataError: the file cannot be read, or holds no such atoms.
    """
    from rdkit import Chem, rdBase

    path = Path(path)
    try:
        text = gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the pocket: {error}", str(path)) from None
    with rdBase.BlockLogs():
        mol = Chem.MolFromPDBBlock(text, sanitize=False, removeHs=False, proximityBonding=False)
    if mol is None or not mol.GetNumAtoms():
        raise DataError("no ATOM records: give a PDB file of the protein or of its pocket", str(path))
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for atom in mol.GetAtoms():
        facts = atom.GetPDBResidueInfo()
        key = (facts.GetChainId(), facts.GetResidueNumber(), facts.GetInsertionCode(), facts.GetResidueName())
        groups.setdefault(key, []).append(atom)
    chosen = [_heavy(atoms) for key, atoms in groups.items() if _belongs(key[-1].strip(), atoms)]
    if not any(chosen):
        raise DataError("no amino acids: give a PDB file of the protein or of its pocket", str(path))
    positions = mol.GetConformer().GetPositions()
    index = [atom.GetIdx() for atoms in chosen for atom in atoms]
    return Structure(
        np.array([mol.GetAtomWithIdx(k).GetAtomicNum() for k in index], dtype=np.int64),
        np.array(positions[index], dtype=np.float64),
        arrays={"residue": np.repeat(np.arange(len(chosen)), [len(atoms) for atoms in chosen])},
    )


def cut(protein: Structure, near: np.ndarray, radius: float) -> Structure:
    """The residues with an atom within `radius` Å of one of the points `near` ``(m, 3)``.

    Residues that lie upon the points (a molecule left in the protein's file) are left away.

    Raises:
        DataError: nothing is there.
    """
    squared = ((protein.positions[:, None] - near) ** 2).sum(-1).min(1)
    residue = protein.arrays["residue"]
    wanted = set(residue[squared <= radius**2].tolist()) - set(residue[squared < TOUCHING**2].tolist())
    chosen = np.isin(residue, list(wanted))
    if not chosen.any():
        raise DataError(
            f"no residue within {radius:g} Å of the molecule or centre (the nearest atom is "
            f"{np.sqrt(squared.min()):.1f} Å away)"
        )
    return Structure(protein.numbers[chosen], protein.positions[chosen], arrays={"residue": residue[chosen].copy()})


def read_pairs(
    molecules: Sequence[str],
    proteins: Sequence[str],
    options: MoleculeOptions,
    radius: float,
    *,
    properties: Sequence[str] = (),
) -> tuple[list[Structure], dict[str, int]]:
    """Molecules with their pockets in `info["pocket"]`, and how many were left out for which reason.

    Args:
        molecules: files, each with one or more molecules that lie in the pocket of the file in the same place of
            `proteins`. radius: Å, see :func:`cut`.

    Raises:
        DataError: not one protein for each file, files that cannot be read, or nothing usable.
    """
    if len(molecules) != len(proteins):
        raise DataError(f"{len(molecules)} files of molecules, but {len(proteins)} of pockets: one each is needed")
    found: list[Structure] = []
    left_out: dict[str, int] = {}
    for path, protein in zip(molecules, proteins, strict=True):
        try:
            several, reasons = read_molecules(path, options, properties=properties)
        except DataError as error:
            several, reasons = [], {f"{Path(path).name}: {error}": 1}
        whole = read_protein(protein)
        for molecule in several:
            try:
                molecule.info["pocket"] = cut(whole, molecule.positions, radius)
            except DataError as error:
                reasons[str(error)] = reasons.get(str(error), 0) + 1
            else:
                found.append(molecule)
        for reason, count in reasons.items():
            left_out[reason] = left_out.get(reason, 0) + count
    if not found:
        raise DataError(f"no usable pair of molecule and pocket: {'; '.join(list(left_out)[:3])}")
    return found, left_out


def _belongs(name: str, atoms: list[Any]) -> bool:
    """An amino acid (modified ones too), or an ion."""
    if name in WATER:
        return False
    facts = [atom.GetPDBResidueInfo() for atom in atoms]
    names = {fact.GetName().strip() for fact in facts}
    return not facts[0].GetIsHeteroAtom() or names >= BACKBONE or len(atoms) == 1


def _heavy(atoms: list[Any]) -> list[Any]:
    """Heavy atoms; of several with the same name, alternative locations, the first."""
    named: dict[str, Any] = {}
    for atom in atoms:
        if atom.GetAtomicNum() > 1:
            named.setdefault(atom.GetPDBResidueInfo().GetName().strip(), atom)
    return list(named.values())
