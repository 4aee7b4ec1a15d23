"""Structure <-> ASE Atoms; nothing is lost on the way there and back.

Labels travel as results of a SinglePointCalculator; charge, spin and bonds in `atoms.info`; constraints and
the displacement of the cell in `Structure.info`. The pymatgen and RDKit bridges lie in their own modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .keys import KeyMap, Labeller, to_voigt
from .structure import LABELS, Structure
from .units import Units

if TYPE_CHECKING:
    import ase

CONSTRAINTS = "ase_constraints"  # keys of Structure.info for what only ASE has
CELL_ORIGIN = "ase_celldisp"


def from_ase(atoms: ase.Atoms, *, keys: KeyMap | None = None, units: Units | None = None, where: str = "") -> Structure:
    """The structure of ASE Atoms; labels from the calculator's results, else from `info` and `arrays`.

    keys, units: names and units of the labels where they are not ASE's own.

    Raises:
        DataError: ambiguous or unusable labels.
    """
    return Labeller(keys, units, where)(raw_from_ase(atoms), where)


def raw_from_ase(atoms: ase.Atoms) -> Structure:
    """As `from_ase`, with the keys of `info` and `arrays` where they were."""
    arrays = {key: np.array(value) for key, value in atoms.arrays.items() if key not in ("numbers", "positions")}
    info = dict(atoms.info)
    if atoms.constraints:
        info[CONSTRAINTS] = [constraint.todict() for constraint in atoms.constraints]
    displacement = atoms.get_celldisp().reshape(3)
    if displacement.any():
        info[CELL_ORIGIN] = displacement
    bonds = info.pop("bonds", None)
    labels, extra = _results(atoms)
    for key, value in extra.items():
        info.setdefault(key, value)
    for key in labels:  # a copy of the same value in info would only come back as a doubt
        if key in info and np.array_equal(np.asarray(info[key]).ravel(), labels[key].ravel()):
            del info[key]
    return Structure(
        numbers=atoms.numbers.copy(),
        positions=atoms.positions.copy(),
        cell=atoms.cell.array.copy(),
        pbc=atoms.pbc.copy(),
        bonds=None if bonds is None else np.asarray(bonds),
        labels=labels,
        arrays=arrays,
        info=info,
    )


def _results(atoms: ase.Atoms) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(labels, other results) that the calculator holds for exactly this geometry; nothing is computed."""
    calculator = atoms.calc
    results = getattr(calculator, "results", None)
    if not results or (hasattr(calculator, "check_state") and calculator.check_state(atoms)):
        return {}, {}
    labels: dict[str, np.ndarray] = {}
    extra: dict[str, Any] = {}
    for key, value in results.items():
        if value is None:
            continue
        spec = LABELS.get(key)
        array = np.asarray(value)
        if spec is None or array.dtype.kind not in "iuf":
            extra[key] = value
            continue
        if key == "stress":
            array = to_voigt(array.astype(np.float64), "stress of the calculator")
        expected = (len(atoms), *spec.shape) if spec.per_atom else spec.shape
        if array.size == int(np.prod(expected)):
            labels[key] = array.astype(np.float64).reshape(expected).copy()
        else:
            extra[key] = value  # e.g. non-collinear magnetic moments (n, 3)
    return labels, extra


def to_ase(structure: Structure) -> ase.Atoms:
    """ASE Atoms with the labels in a SinglePointCalculator; reads back as the same structure."""
    import ase
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.constraints import dict2constraint

    info = dict(structure.info)
    constraints = [dict2constraint(dict(entry)) for entry in info.pop(CONSTRAINTS, [])]
    displacement = info.pop(CELL_ORIGIN, None)
    atoms = ase.Atoms(
        numbers=structure.numbers.copy(),
        positions=structure.positions.copy(),
        cell=structure.cell.copy(),
        pbc=structure.pbc.copy(),
        celldisp=displacement,
    )
    for key, value in structure.arrays.items():
        if len(value) != structure.n_atoms:
            raise DataError(f"array {key!r} has {len(value)} rows for {structure.n_atoms} atoms")
        atoms.arrays[key] = value.copy()
    if structure.charge is not None:
        info["charge"] = structure.charge
    if structure.spin is not None:
        info["spin"] = structure.spin
    if structure.bonds is not None:
        info["bonds"] = structure.bonds.copy()
    atoms.info = info
    if constraints:
        atoms.set_constraint(constraints)
    if structure.labels:
        results = {k: float(v) if v.ndim == 0 else v.copy() for k, v in structure.labels.items()}
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
