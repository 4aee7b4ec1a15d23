"""Structure <-> pymatgen Structure (with a cell) or Molecule (without).

Labels, arrays and info are site properties and properties under their own names; what pymatgen has no place for
(bonds, spin of a crystal, a zero cell vector) is kept in the property `tesseral`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .structure import DEGENERATE, LABELS, Structure

if TYPE_CHECKING:
    import pymatgen.core

PROPERTY = "tesseral"
SITE_LABEL = "site_label"
OXIDATION = "oxidation_states"
SITE_SPIN = "site_spin"


def to_pymatgen(structure: Structure) -> pymatgen.core.Structure | pymatgen.core.Molecule:
    """pymatgen Structure if there is any cell vector, else Molecule.

    Raises:
        DataError: a charge and a multiplicity that do not go together (pymatgen's own check).
    """
    import pymatgen.core as pmg

    site_properties = {key: value.tolist() for key, value in structure.arrays.items()}
    own: dict[str, Any] = {}
    properties: dict[str, Any] = dict(structure.info)
    for key, value in structure.labels.items():
        if LABELS[key].per_atom:
            site_properties[key] = value.tolist()
        else:
            properties[key] = value.tolist()
    labels = site_properties.pop(SITE_LABEL, None)
    species = _species(structure, site_properties)
    own["labels"] = sorted(structure.labels)
    own["arrays"] = {key: value.dtype.str for key, value in structure.arrays.items()}
    if structure.bonds is not None:
        own["bonds"] = structure.bonds.tolist()
    if not structure.cell.any():
        own["pbc"] = structure.pbc.tolist()
        own["charge"], own["spin"] = structure.charge, structure.spin
        try:
            return pmg.Molecule(
                species,
                structure.positions,
                charge=structure.charge or 0.0,
                spin_multiplicity=structure.spin,
                site_properties=site_properties,
                labels=labels,
                properties={**properties, PROPERTY: own},
            )
        except ValueError as error:
            raise DataError(f"pymatgen refuses {structure.formula}: {error}; mend charge or spin") from None
    own["cell"], own["spin"] = structure.cell.tolist(), structure.spin
    a, b, c = structure.pbc
    lattice = pmg.Lattice(_invertible(structure.cell), pbc=(bool(a), bool(b), bool(c)))
    return pmg.Structure(
        lattice,
        species,
        structure.positions,
        charge=structure.charge,
        coords_are_cartesian=True,
        site_properties=site_properties,
        labels=labels,
        properties={**properties, PROPERTY: own},
    )


def from_pymatgen(source: Any) -> Structure:
    """From a pymatgen Structure or Molecule; oxidation states become an array.

    Raises:
        DataError: a disordered site (partial occupancy).
    """
    properties = dict(source.properties or {})
    own = dict(properties.pop(PROPERTY, {}))
    if not source.is_ordered:
        site = next(site for site in source if not site.is_ordered)
        raise DataError(f"the site {site.species_string} is partly occupied: make an ordered structure first")
    crystal = hasattr(source, "lattice")
    structure = Structure(
        numbers=np.array([site.specie.Z for site in source]),
        positions=np.array(source.cart_coords).reshape(-1, 3),
        cell=np.array(own.get("cell", source.lattice.matrix)) if crystal else np.zeros((3, 3)),
        pbc=np.array(source.lattice.pbc if crystal else own.get("pbc", [False] * 3)),
        bonds=None if own.get("bonds") is None else np.array(own["bonds"]).reshape(-1, 3),
    )
    if crystal:
        structure.charge = None if source._charge is None else float(source._charge)
        structure.spin = own.get("spin")
    elif own:
        structure.charge, structure.spin = own.get("charge"), own.get("spin")
    else:
        structure.charge, structure.spin = float(source.charge), int(source.spin_multiplicity)
    values = {key: list(column) for key, column in source.site_properties.items()}
    values.update(_species_properties(source))
    ours = own.get("labels")
    for key, column in values.items():
        _place(structure, key, column, own, ours)
    for key, value in properties.items():
        if key in LABELS and (ours is None or key in ours) and not LABELS[key].per_atom:
            structure.labels[key] = np.asarray(value, dtype=np.float64)
        else:
            structure.info[key] = value
    if any(site.label != site.species_string for site in source):
        structure.arrays[SITE_LABEL] = np.array([site.label for site in source])
    return structure


def _place(
    structure: Structure, key: str, column: list[Any], own: dict[str, Any], ours: list[str] | None
) -> None:
    if any(value is None for value in column):  # a property that only some sites have
        structure.info[key] = column
        return
    array = np.array(column)
    dtype = own.get("arrays", {}).get(key)
    if dtype is not None:
        structure.arrays[key] = array.astype(dtype)
    elif key in LABELS and LABELS[key].per_atom and (ours is None or key in ours):
        structure.labels[key] = array.astype(np.float64)
    else:
        structure.arrays[key] = array


def _species(structure: Structure, site_properties: dict[str, Any]) -> list[Any]:
    """Elements, or species with oxidation state and spin where arrays give them."""
    import pymatgen.core as pmg

    oxidation = site_properties.pop(OXIDATION, None)
    spins = site_properties.pop(SITE_SPIN, None)
    if oxidation is None and spins is None:
        return [pmg.Element.from_Z(int(z)) for z in structure.numbers]
    species = []
    for i, symbol in enumerate(structure.symbols):
        spin = None if spins is None else float(spins[i])
        species.append(pmg.Species(symbol, None if oxidation is None else oxidation[i], spin=spin))
    return species


def _species_properties(source: Any) -> dict[str, list[Any]]:
    """Oxidation states and spins of the sites, where all sites state them."""
    oxidation = [getattr(site.specie, "oxi_state", None) for site in source]
    spins = [getattr(site.specie, "spin", None) for site in source]
    found = {}
    if len(source) and all(value is not None for value in oxidation):
        found[OXIDATION] = oxidation
    if len(source) and all(value is not None for value in spins):
        found[SITE_SPIN] = spins
    return found


def _invertible(cell: np.ndarray) -> np.ndarray:
    """The cell with zero vectors (of non-periodic axes) replaced by unit vectors normal to the others.

    pymatgen needs fractional coordinates; the original cell travels in the property `tesseral`.
    """
    zero = np.linalg.norm(cell, axis=1) < DEGENERATE
    if not zero.any():
        return cell
    completed = cell.copy()
    completed[zero] = np.linalg.svd(cell[~zero], full_matrices=True)[2][3 - int(zero.sum()) :]
    return completed
