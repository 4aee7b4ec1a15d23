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

    sites = {key: value.tolist() for key, value in structure.arrays.items()}
    sites.update({k: v.tolist() for k, v in structure.labels.items() if LABELS[k].per_atom})
    properties = dict(structure.info)
    properties.update({k: v.tolist() for k, v in structure.labels.items() if not LABELS[k].per_atom})
    own = _homeless(structure)
    if own:
        properties[PROPERTY] = own
    labels = sites.pop(SITE_LABEL, None)
    species = _species(structure, sites)
    if structure.cell.any():
        a, b, c = structure.pbc
        return pmg.Structure(
            pmg.Lattice(_invertible(structure.cell), pbc=(bool(a), bool(b), bool(c))),
            species,
            structure.positions,
            charge=structure.charge,
            coords_are_cartesian=True,
            site_properties=sites,
            labels=labels,
            properties=properties,
        )
    try:
        return pmg.Molecule(
            species,
            structure.positions,
            charge=structure.charge or 0.0,
            spin_multiplicity=structure.spin,
            site_properties=sites,
            labels=labels,
            properties=properties,
        )
    except ValueError as error:
        raise DataError(f"pymatgen refuses {structure.formula}: {error}; mend charge or spin") from None


def _homeless(structure: Structure) -> dict[str, Any]:
    """What would not come back by itself."""
    own: dict[str, Any] = {}
    arrays = {
        key: value.dtype.str
        for key, value in structure.arrays.items()
        if (key in LABELS and LABELS[key].per_atom) or np.array(value.tolist()).dtype != value.dtype
    }
    if arrays:
        own["arrays"] = arrays
    info = [key for key in structure.info if key in LABELS and not LABELS[key].per_atom]
    if info:
        own["info"] = info
    if structure.bonds is not None:
        own["bonds"] = structure.bonds.tolist()
    if structure.cell.any():
        if structure.spin is not None:
            own["spin"] = structure.spin
        if _invertible(structure.cell) is not structure.cell:
            own["cell"] = structure.cell.tolist()
        return own
    if structure.pbc.any():
        own["pbc"] = structure.pbc.tolist()
    for key in ("charge", "spin"):
        if getattr(structure, key) is None:
            own[key] = None  # a Molecule always has both
    return own


def from_pymatgen(source: Any) -> Structure:
    """From a pymatgen Structure or Molecule; oxidation states become an array.

    Raises:
        DataError: a disordered site (partial occupancy).
    """
    if not source.is_ordered:
        site = next(site for site in source if not site.is_ordered)
        raise DataError(f"the site {site.species_string} is partly occupied: make an ordered structure first")
    properties = dict(source.properties or {})
    own = properties.pop(PROPERTY, {})
    crystal = hasattr(source, "lattice")
    charge = source._charge if crystal else own.get("charge", source.charge)
    structure = Structure(
        numbers=np.array([site.specie.Z for site in source]),
        positions=np.array(source.cart_coords).reshape(-1, 3),
        cell=np.array(own.get("cell", source.lattice.matrix)) if crystal else np.zeros((3, 3)),
        pbc=np.array(source.lattice.pbc if crystal else own.get("pbc", [False] * 3)),
        charge=charge,
        spin=own.get("spin") if crystal else own.get("spin", source.spin_multiplicity),
        bonds=None if own.get("bonds") is None else np.array(own["bonds"]).reshape(-1, 3),
    )
    columns = {
        **{key: list(column) for key, column in source.site_properties.items()},
        **_species_properties(source),
    }
    for key, column in columns.items():
        _place(structure, key, column, own.get("arrays", {}))
    for key, value in properties.items():
        if key in LABELS and not LABELS[key].per_atom and key not in own.get("info", ()):
            structure.labels[key] = np.asarray(value, dtype=np.float64)
        else:
            structure.info[key] = value
    if any(site.label != site.species_string for site in source):
        structure.arrays[SITE_LABEL] = np.array([site.label for site in source])
    return structure


def _place(structure: Structure, key: str, column: list[Any], arrays: dict[str, str]) -> None:
    """Put a site property where it belongs: an array of ours, a label, another array, or info."""
    if any(value is None for value in column):  # a property that only some sites have
        structure.info[key] = column
    elif key in arrays:
        structure.arrays[key] = np.array(column).astype(arrays[key])
    elif key in LABELS and LABELS[key].per_atom:
        structure.labels[key] = np.array(column, dtype=np.float64)
    else:
        structure.arrays[key] = np.array(column)


def _species(structure: Structure, site_properties: dict[str, Any]) -> list[Any]:
    """Elements, or species with oxidation state and spin where arrays give them."""
    import pymatgen.core as pmg

    oxidation = site_properties.pop(OXIDATION, None)
    spins = site_properties.pop(SITE_SPIN, None)
    if oxidation is None and spins is None:
        return [pmg.Element.from_Z(int(z)) for z in structure.numbers]
    species = []
    for i, symbol in enumerate(structure.symbols):
        state = None if oxidation is None else oxidation[i]
        species.append(pmg.Species(symbol, state, spin=None if spins is None else spins[i]))
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
