"""Structure <-> RDKit Mol: bond orders, formal charges, one conformer; the rest travels in properties.

What RDKit has no place for (cell, labels, arrays, non-text info) is kept as JSON in the property `tesseral`, so
that also an SD file carries it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import codec
from .elements import MAX_Z
from .errors import DataError
from .structure import Structure

if TYPE_CHECKING:
    import rdkit.Chem

PROPERTY = "tesseral"
# Per-atom arrays that RDKit atoms have of themselves; zeros throughout are left out.
ATOM_ARRAYS = {
    "formal_charges": ("GetFormalCharge", "SetFormalCharge"),
    "radical_electrons": ("GetNumRadicalElectrons", "SetNumRadicalElectrons"),
    "isotopes": ("GetIsotope", "SetIsotope"),
    "atom_maps": ("GetAtomMapNum", "SetAtomMapNum"),
    "explicit_hydrogens": ("GetNumExplicitHs", "SetNumExplicitHs"),
}
IMPLICIT = "implicit_hydrogens"
BOND_TYPES = "rdkit_bond_types"  # info: names of all bond types, where a code would not tell one (dative)
ORDERS = {1: "SINGLE", 2: "DOUBLE", 3: "TRIPLE", 4: "AROMATIC", 0: "UNSPECIFIED"}


def from_rdkit(mol: rdkit.Chem.Mol, *, conformer: int = -1, where: str = "") -> Structure:
    """The structure of a molecule in one of its conformers.

    Raises:
        DataError: no conformer (embed it first), or an atom that is no element.
    """
    if not mol.GetNumConformers():
        raise DataError("the molecule has no conformer: embed it first (AllChem.EmbedMolecule)", where)
    geometry = mol.GetConformer(conformer)
    atoms = list(mol.GetAtoms())
    numbers = [atom.GetAtomicNum() for atom in atoms]
    if any(not 0 < z <= MAX_Z for z in numbers):
        raise DataError(f"atom {numbers.index(0)} is a dummy or query atom, not an element", where)
    arrays: dict[str, np.ndarray] = {}
    for name, (get, _) in ATOM_ARRAYS.items():
        values = np.array([getattr(atom, get)() for atom in atoms], dtype=np.int64)
        if values.any():
            arrays[name] = values
    implicit = np.array([_implicit(atom) for atom in atoms], dtype=np.int64)
    if implicit.any():
        arrays[IMPLICIT] = implicit
    bonds, names = _bonds(mol)
    info: dict[str, Any] = {}
    properties = mol.GetPropsAsDict(includePrivate=False, includeComputed=False)
    packed = properties.pop(PROPERTY, None)
    info.update(properties)
    if mol.HasProp("_Name") and mol.GetProp("_Name"):
        info["name"] = mol.GetProp("_Name")
    if names is not None:
        info[BOND_TYPES] = names
    if not geometry.Is3D():
        info["is_3d"] = False
    structure = Structure(
        numbers=np.array(numbers),
        positions=np.array(geometry.GetPositions(), dtype=np.float64).reshape(-1, 3),
        charge=float(sum(atom.GetFormalCharge() for atom in atoms)),
        bonds=bonds,
        arrays=arrays,
        info=info,
    )
    if packed is not None:
        _unpack(structure, str(packed), where)
    return structure


def to_rdkit(structure: Structure, *, sanitize: bool = True) -> rdkit.Chem.Mol:
    """RDKit Mol with one conformer. Hydrogens are the atoms that are there: none are added.

    Raises:
        DataError: RDKit finds the bonds and charges chemically impossible (`sanitize=False` lets them pass).
    """
    from rdkit import Chem

    mol = Chem.RWMol()
    for z in structure.numbers:
        atom = Chem.Atom(int(z))
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for name, (_, set_value) in ATOM_ARRAYS.items():
        for atom, value in zip(mol.GetAtoms(), structure.arrays.get(name, ()), strict=False):
            getattr(atom, set_value)(int(value))
    if IMPLICIT in structure.arrays:
        for atom, value in zip(mol.GetAtoms(), structure.arrays[IMPLICIT], strict=True):
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() + int(value))
    _add_bonds(mol, structure)
    geometry = Chem.Conformer(structure.n_atoms)
    geometry.Set3D(bool(structure.info.get("is_3d", True)))
    geometry.SetPositions(np.ascontiguousarray(structure.positions))
    mol.AddConformer(geometry, assignId=True)
    _pack(mol, structure)
    if not sanitize:
        mol.UpdatePropertyCache(strict=False)
        return mol.GetMol()
    try:
        Chem.SanitizeMol(mol)
    except ValueError as error:
        text = str(error).strip()
        raise DataError(
            f"RDKit refuses the bonds of {structure.formula} ({text}); mend bonds and formal_charges, or pass "
            "sanitize=False"
        ) from None
    if geometry.Is3D():
        Chem.AssignStereochemistryFrom3D(mol)
    return mol.GetMol()


def _implicit(atom: Any) -> int:
    """Hydrogens that are no atoms, beyond the explicitly counted ones."""
    return int(atom.GetNumImplicitHs())


def _bonds(mol: rdkit.Chem.Mol) -> tuple[np.ndarray, list[str] | None]:
    """(rows (i, j, order), names of the types where an order does not say everything)."""
    codes = {name: code for code, name in ORDERS.items()}
    names = [str(bond.GetBondType()) for bond in mol.GetBonds()]
    ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    rows = [(i, j, codes.get(name, 0)) for (i, j), name in zip(ends, names, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3), names if any(n not in codes for n in names) else None


def _add_bonds(mol: Any, structure: Structure) -> None:
    from rdkit import Chem

    names = structure.info.get(BOND_TYPES)
    for row, (i, j, order) in enumerate(structure.bonds if structure.bonds is not None else ()):
        name = names[row] if names is not None else ORDERS.get(int(order), "UNSPECIFIED")
        mol.AddBond(int(i), int(j), Chem.BondType.names[name])
        if name == "AROMATIC":
            mol.GetBondBetweenAtoms(int(i), int(j)).SetIsAromatic(True)
            for end in (int(i), int(j)):
                mol.GetAtomWithIdx(end).SetIsAromatic(True)


def _pack(mol: Any, structure: Structure) -> None:
    """Properties of the molecule: texts and numbers of `info` as they are, the rest as JSON."""
    setters = {str: mol.SetProp, bool: mol.SetBoolProp, float: mol.SetDoubleProp}
    rest: dict[str, Any] = {}
    for key, value in structure.info.items():
        if key in ("name", "is_3d", BOND_TYPES):
            continue
        if type(value) in setters:
            setters[type(value)](key, value)
        elif type(value) is int and abs(value) < 2**31:
            mol.SetIntProp(key, value)
        else:
            rest[key] = value
    if "name" in structure.info:
        mol.SetProp("_Name", str(structure.info["name"]))
    known = (*ATOM_ARRAYS, IMPLICIT)
    extra = {
        "cell": structure.cell if structure.cell.any() else None,
        "pbc": structure.pbc if structure.pbc.any() else None,
        "charge": structure.charge,
        "spin": structure.spin,
        "labels": structure.labels,
        "arrays": {key: value for key, value in structure.arrays.items() if key not in known},
        "info": rest,
        "no_bonds": structure.bonds is None,
    }
    mol.SetProp(PROPERTY, codec.encode(codec.plain({k: v for k, v in extra.items() if _holds(v)})))


def _holds(value: Any) -> bool:
    return not (value is None or value is False or (isinstance(value, dict) and not value))


def _unpack(structure: Structure, packed: str, where: str) -> None:
    extra = codec.decode(packed, where)
    structure.cell = np.asarray(extra.get("cell", structure.cell))
    structure.pbc = np.asarray(extra.get("pbc", structure.pbc))
    structure.charge, structure.spin = extra.get("charge"), extra.get("spin")
    structure.labels.update(extra.get("labels", {}))
    structure.arrays.update(extra.get("arrays", {}))
    structure.info.update(extra.get("info", {}))
    if extra.get("no_bonds"):
        structure.bonds = None
