"""From files of molecules to training data: SD files, SMILES, or geometries to which SMILES give the bonds."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..datasets.elements import COVALENT_RADII
from ..datasets.errors import DataError
from ..datasets.read import iread
from ..datasets.structure import Structure
from ..training.config import ConfigError, option
from .chemistry import n_fragments, sanitised
from .conditions import property_of
from .hydrogens import implicit_hydrogens
from .vocabulary import Vocabulary

EXTRA: dict[str, Callable[[Any], int]] = {
    "ring": lambda atom: int(atom.IsInRing()),
    "aromatic": lambda atom: int(atom.GetIsAromatic()),
    "hybridisation": lambda atom: int(atom.GetHybridization()),
}
"""Variables of an atom that RDKit derives from the bonds."""
SMILES_SUFFIXES = (".smi", ".smiles", ".txt", ".csv")
LONGEST = 1.3  # of a bond, in sums of covalent radii
EMBED_SEED = 20240613


@dataclass(frozen=True)
class MoleculeOptions:
    """The form in which molecules are learned."""

    hydrogens: Literal["keep", "remove", "add"] = option(
        "keep", "keep: as in the file; remove: implicit hydrogens; add: complete them with coordinates"
    )
    aromatic: bool = option(False, "learn aromatic bonds as a class of their own; false: single and double")
    extra: list[str] = option([], "further variables of atoms that are learned along, of ring, aromatic, hybridisation")
    check: bool = option(
        True, "false: the file holds molecules in this form already, written by an earlier preparation"
    )
    max_molecules: int | None = option(None, "take the first ones only; null: all")

    def __post_init__(self) -> None:
        unknown = set(self.extra) - set(EXTRA)
        if unknown:
            raise ConfigError(f"extra: no variable is called {sorted(unknown)[0]!r}; there are {', '.join(EXTRA)}")


def read_molecules(
    paths: str | Path | Sequence[str | Path],
    options: MoleculeOptions | None = None,
    *,
    properties: Sequence[str] = (),
) -> tuple[list[Structure], dict[str, int]]:
    """Molecules of one or more files, and how many were left out for which reason.

    SMILES files have one SMILES per line (:func:`smiles_rows`); geometries come from ETKDG and MMFF94, the same in
    each run. Any other file is read by `datasets.read` and must have bonds.

    Args:
        properties: numbers that every molecule needs, kept in `info`: properties of an SD file, columns of a SMILES
            file with a heading, keys of extxyz files and stores.

    Raises:
        DataError: a file that cannot be read, or nothing usable in any.
    """
    options = options or MoleculeOptions()
    found: list[Structure] = []
    left_out: Counter[str] = Counter()
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for raw in _raw(Path(path), options):
            if options.max_molecules is not None and len(found) >= options.max_molecules:
                break
            try:
                if isinstance(raw, DataError):
                    raise raw
                values = {name: property_of(raw, name) for name in properties}
                found.append(prepared(raw, options))
                found[-1].info.update(values)
            except DataError as error:
                left_out[str(error).split(":", maxsplit=1)[0]] += 1
    if not found:
        reasons = ", ".join(f"{count} x {text}" for text, count in left_out.most_common(3)) or "empty files"
        raise DataError(f"no usable molecules in {paths}: {reasons}")
    return found, dict(left_out.most_common())


def prepared(structure: Structure, options: MoleculeOptions) -> Structure:
    """A molecule in the form in which it is learned: hydrogens, Kekulé bonds, formal charges, nothing else.

    Raises:
        DataError: no bonds, RDKit refuses them, or several fragments; the text before ":" names the kind.
    """
    from rdkit import Chem

    if structure.bonds is None:
        raise DataError("no bonds: give an SD file, or SMILES")
    if not options.check:
        return _bare(structure, options.extra)
    mol, reason = sanitised(_bare(structure), implicit_hydrogens=options.hydrogens != "keep")
    if mol is None:
        raise DataError(f"RDKit refuses the molecule: {reason}")
    if n_fragments(structure) > 1:
        raise DataError("several fragments: give single molecules, without counter-ions and solvent")
    if options.hydrogens == "remove":
        mol = Chem.RemoveAllHs(mol)
    elif options.hydrogens == "add":
        mol = Chem.AddHs(mol, addCoords=True)
    extra = {name: np.array([EXTRA[name](atom) for atom in mol.GetAtoms()]) for name in options.extra}
    if not options.aromatic:
        Chem.Kekulize(mol, clearAromaticFlags=True)
    found = Structure.from_rdkit(mol)
    found.arrays.update(extra)
    return _bare(found, options.extra)


def fixed_part(structure: Structure, vocabulary: Vocabulary) -> Structure:
    """A molecule as the part that a model shall keep, its `arrays["open_valences"]` saying where it may grow.

    A complete molecule loses its hydrogens and may grow at the place of each of them. One that lacks hydrogens (drawn
    without all of them) grows only where they lack.

    Raises:
        DataError: RDKit refuses the molecule.
    """
    lacking = implicit_hydrogens(structure)
    keep = bool(lacking.any()) and not vocabulary.implicit_hydrogens
    options = MoleculeOptions(
        hydrogens="keep" if keep else "remove",
        aromatic=4 in vocabulary.bonds.values,
        extra=[name for name in vocabulary.atoms if name in EXTRA],
    )
    core = prepared(structure, options)
    if keep:
        room = lacking
    else:
        room = lacking[structure.numbers > 1] if lacking.any() else implicit_hydrogens(core)
    core.arrays["open_valences"] = room
    return core


def embedded(smiles: str, *, seed: int = EMBED_SEED) -> Structure:
    """A molecule with all hydrogens and a geometry from ETKDG and MMFF94 (UFF for elements that MMFF lacks).

    Raises:
        DataError: no molecule, or one that cannot be embedded; the text before ":" names the kind.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None or not mol.GetNumAtoms():
            raise DataError(f"no SMILES that RDKit reads: {smiles!r}")
        mol = Chem.AddHs(mol)
        if rdDistGeom.EmbedMolecule(mol, randomSeed=seed % 2**31) != 0:
            raise DataError(f"no geometry found: {smiles!r}")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.UFFOptimizeMolecule(mol)
    return Structure.from_rdkit(mol)


def with_bonds_of(structure: Structure, smiles: str) -> Structure:
    """A geometry with the bonds and charges of its SMILES, whose atoms (hydrogens last) are in the same order.

    Raises:
        DataError: other elements, or bonded atoms that are far apart; the text before ":" names the kind.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        mol = None if mol is None else Chem.AddHs(mol)
    if mol is None:
        raise DataError(f"no SMILES that RDKit reads: {smiles!r}")
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if numbers != structure.numbers.tolist():
        raise DataError(f"atoms are not those of the SMILES in its order: {smiles!r}")
    geometry = Chem.Conformer(len(numbers))
    geometry.SetPositions(np.ascontiguousarray(structure.positions))
    mol.AddConformer(geometry, assignId=True)
    found = Structure.from_rdkit(mol)
    if found.bonds is None or not len(found.bonds):
        return found
    i, j, _ = found.bonds.T
    lengths = np.linalg.norm(found.positions[i] - found.positions[j], axis=1)
    limits = LONGEST * (COVALENT_RADII[found.numbers[i]] + COVALENT_RADII[found.numbers[j]])
    if (lengths > limits).any():
        raise DataError(f"bonded atoms are far apart: {smiles!r}, {lengths.max():.2f} Å")
    return found


def _raw(path: Path, options: MoleculeOptions) -> Iterator[Structure | DataError]:
    if not path.name.lower().removesuffix(".gz").endswith(SMILES_SUFFIXES):
        yield from iread(path)
        return
    for smiles, columns in smiles_rows(path):
        try:
            molecule = embedded(smiles)
        except DataError as error:
            yield error
        else:
            molecule.info.update(columns)
            yield molecule


def smiles_of(path: str | Path) -> Iterator[str]:
    """The SMILES of :func:`smiles_rows` alone."""
    for smiles, _ in smiles_rows(path):
        yield smiles


def smiles_rows(path: str | Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The SMILES of each line, and its other columns by name.

    A first line without SMILES is the heading: its columns end with commas, tabs or blanks, and SMILES are in the one
    called "smiles", or else in the first. Without heading the first field of a line is the SMILES.

    Raises:
        DataError: the file cannot be read.
    """
    path = Path(path)
    separator: str | None = None
    heading: list[str] = []
    column = 0
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                first = line.replace(",", " ").split()
                if not first:
                    continue
                if number == 0 and not _is_smiles(first[0]):
                    separator = next((mark for mark in ",\t" if mark in line), None)
                    heading = [name.strip() for name in line.split(separator)]
                    lower = [name.lower() for name in heading]
                    column = lower.index("smiles") if "smiles" in lower else 0
                    continue
                fields = [text.strip() for text in line.split(separator)] if heading else first[:1]
                if column < len(fields) and fields[column]:
                    named = dict(zip(heading, fields, strict=False))
                    named.pop(heading[column] if heading else "", None)
                    yield fields[column], named
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read SMILES: {error}", str(path)) from None


def _is_smiles(text: str) -> bool:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(text) is not None


def _bare(structure: Structure, extra: Sequence[str] = ()) -> Structure:
    """Numbers, positions, bonds, formal charges and the arrays `extra` alone."""
    arrays = {key: structure.arrays[key] for key in ("formal_charges", *extra) if key in structure.arrays}
    charges = arrays.get("formal_charges")
    return Structure(
        numbers=structure.numbers,
        positions=structure.positions,
        charge=0.0 if charges is None else float(charges.sum()),
        bonds=structure.bonds,
        arrays=arrays,
    )
