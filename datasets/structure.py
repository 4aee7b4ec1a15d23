"""One molecule or cell: the record that every reader yields and every store, graph and calculator takes.

Units: Å, eV, e; stress in eV/Å³, ASE sign (tension positive), Voigt order xx yy zz yz xz xy.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import elements
from .errors import DataError

if TYPE_CHECKING:
    import ase
    import pymatgen.core
    import rdkit.Chem


class LabelSpec(NamedTuple):
    """Shape of one label (`per_atom`: one row of `shape` per atom) and its unit."""

    per_atom: bool
    shape: tuple[int, ...]
    unit: str


LABELS: dict[str, LabelSpec] = {
    "energy": LabelSpec(False, (), "eV"),
    "free_energy": LabelSpec(False, (), "eV"),
    "energies": LabelSpec(True, (), "eV"),
    "forces": LabelSpec(True, (3,), "eV/Å"),
    "stress": LabelSpec(False, (6,), "eV/Å^3"),
    "dipole": LabelSpec(False, (3,), "e·Å"),
    "charges": LabelSpec(True, (), "e"),
    "magmom": LabelSpec(False, (), "μB"),
    "magmoms": LabelSpec(True, (), "μB"),
}
DEGENERATE = 1e-6  # |det| of the unit cell vectors below which three axes do not span a cell


@dataclass(eq=False)
class Structure:
    """One frame.

    numbers: `(n,)` int64 atomic numbers. positions: `(n, 3)` Å. cell: `(3, 3)` Å, rows are the vectors, zeros
    if there is none. pbc: `(3,)` bool. charge: total charge (e). spin: multiplicity 2S+1.
    bonds: `(n_bonds, 3)` int64 rows (i, j, order), order 1, 2, 3, 4 = aromatic, 0 = other; None = not known.
    labels: reference values under the keys of `LABELS`, in their units. arrays: other per-atom arrays.
    info: everything else.

    Raises:
        DataError: shapes that cannot be brought into this form.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=bool))
    charge: float | None = None
    spin: int | None = None
    bonds: np.ndarray | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = _shaped("numbers", self.numbers, np.int64, (-1,))
        self.positions = _shaped("positions", self.positions, np.float64, (len(self.numbers), 3))
        cell = np.asarray(self.cell, dtype=np.float64)
        self.cell = _shaped("cell", np.diag(cell) if cell.shape == (3,) else cell, np.float64, (3, 3))
        pbc = np.asarray(self.pbc, dtype=bool)
        self.pbc = _shaped("pbc", np.full(3, pbc) if pbc.shape == () else pbc, bool, (3,))
        if self.bonds is not None:
            self.bonds = _shaped("bonds", np.asarray(self.bonds).reshape(-1, 3), np.int64, (-1, 3))
        self.charge = None if self.charge is None else float(self.charge)
        self.spin = None if self.spin is None else int(self.spin)
        self.labels = {key: np.asarray(value, dtype=np.float64) for key, value in self.labels.items()}
        self.arrays = {key: np.asarray(value) for key, value in self.arrays.items()}

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        pbc = "".join("FT"[int(axis)] for axis in self.pbc)
        return f"Structure({self.formula}, pbc={pbc}, labels={sorted(self.labels)})"

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def symbols(self) -> list[str]:
        """Element symbol of each atom."""
        return [elements.symbol(int(z)) for z in self.numbers]

    @property
    def formula(self) -> str:
        """Formula in Hill order."""
        return elements.formula(self.numbers)

    @property
    def volume(self) -> float:
        """|det(cell)| in Å³ (0 without a cell)."""
        return abs(float(np.linalg.det(self.cell)))

    def copy(self) -> Structure:
        """A copy that shares no array with this one (`info` is copied deeply)."""
        return Structure(
            numbers=self.numbers.copy(),
            positions=self.positions.copy(),
            cell=self.cell.copy(),
            pbc=self.pbc.copy(),
            charge=self.charge,
            spin=self.spin,
            bonds=None if self.bonds is None else self.bonds.copy(),
            labels={key: value.copy() for key, value in self.labels.items()},
            arrays={key: value.copy() for key, value in self.arrays.items()},
            info=deepcopy(self.info),
        )

    def validate(self, where: str = "") -> None:
        """Refuse what no model can be trained on or run with; silence means the frame is sound.

        Raises:
            DataError: no atoms, unknown elements, NaN, wrong shapes, bad bonds, zero or left-handed cells;
                the message starts with `where` (file and frame), names the field and how to mend it.
        """
        if not self.n_atoms:
            raise DataError("the frame has no atoms: remove it", where)
        self._validate_atoms(where)
        validate_cell(self.cell, self.pbc, where)
        for key, value in self.labels.items():
            validate_label(key, value, self.n_atoms, where)
        for key, value in self.arrays.items():
            if value.ndim == 0 or len(value) != self.n_atoms:
                raise DataError(
                    f"array {key!r} has shape {value.shape}, expected one row for each of "
                    f"{self.n_atoms} atoms: put it into info",
                    where,
                )
        if self.charge is not None and not np.isfinite(self.charge):
            raise DataError(f"charge is {self.charge}: give a number or leave it out", where)
        if self.spin is not None and self.spin < 1:
            raise DataError(f"spin is {self.spin}: it is the multiplicity 2S+1, at least 1", where)

    def _validate_atoms(self, where: str) -> None:
        n = self.n_atoms
        strange = (self.numbers < 1) | (self.numbers > elements.MAX_Z)
        if strange.any():
            atom = int(np.argmax(strange))
            raise DataError(
                f"unknown element: atom {atom} has atomic number {self.numbers[atom]}, expected 1..{elements.MAX_Z}",
                where,
            )
        if self.positions.shape != (n, 3):
            raise DataError(f"positions have shape {self.positions.shape}, expected ({n}, 3)", where)
        bad = ~np.isfinite(self.positions).all(axis=1)
        if bad.any():
            raise DataError(
                f"positions of atom {int(np.argmax(bad))} are not finite "
                f"({int(bad.sum())} of {n} atoms): remove the frame",
                where,
            )
        if self.bonds is not None and len(self.bonds):
            pairs = self.bonds[:, :2]
            if pairs.min() < 0 or pairs.max() >= n:
                raise DataError(f"bonds name atom {int(pairs.max())}, the frame has atoms 0..{n - 1}", where)
            if (pairs[:, 0] == pairs[:, 1]).any():
                raise DataError("a bond joins an atom with itself: remove it", where)

    def to_ase(self) -> ase.Atoms:
        """ASE Atoms; labels in a SinglePointCalculator, charge, spin and bonds in `info`."""
        from .convert import to_ase

        return to_ase(self)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms, keys: Any = None, units: Any = None) -> Structure:
        """From ASE Atoms; `keys` (KeyMap) names the labels where the guess would not do."""
        from .convert import from_ase

        return from_ase(atoms, keys=keys, units=units)

    def to_pymatgen(self) -> pymatgen.core.Structure | pymatgen.core.Molecule:
        """pymatgen Structure (with a cell) or Molecule (without)."""
        from .convert_pymatgen import to_pymatgen

        return to_pymatgen(self)

    @classmethod
    def from_pymatgen(cls, source: Any) -> Structure:
        """From a pymatgen Structure or Molecule."""
        from .convert_pymatgen import from_pymatgen

        return from_pymatgen(source)

    def to_rdkit(self, *, sanitize: bool = True) -> rdkit.Chem.Mol:
        """RDKit Mol with one conformer, bond orders and formal charges."""
        from .convert_rdkit import to_rdkit

        return to_rdkit(self, sanitize=sanitize)

    @classmethod
    def from_rdkit(cls, mol: rdkit.Chem.Mol, *, conformer: int = -1) -> Structure:
        """From an RDKit Mol with a conformer."""
        from .convert_rdkit import from_rdkit

        return from_rdkit(mol, conformer=conformer)


def validate_cell(cell: np.ndarray, pbc: np.ndarray, where: str = "") -> None:
    """Check the vectors of the periodic axes.

    Raises:
        DataError: not finite; a periodic axis with a zero vector; periodic axes that are (nearly) parallel;
            three vectors that are left-handed.
    """
    if not np.isfinite(cell).all():
        raise DataError("the cell has values that are not finite: remove the frame", where)
    lengths = np.linalg.norm(cell, axis=1)
    for axis in np.flatnonzero(pbc):
        if lengths[axis] < DEGENERATE:
            name = "abc"[axis]
            raise DataError(
                f"zero cell: axis {name} is periodic but its cell vector is zero: set "
                f"the cell, or pbc of {name} to False",
                where,
            )
    if not np.any(pbc):
        return
    periodic = cell[pbc] / lengths[pbc, None]
    if abs(np.linalg.det(periodic @ periodic.T)) < DEGENERATE**2:
        raise DataError("the periodic cell vectors are parallel: the cell has no volume", where)
    if (lengths > DEGENERATE).all() and np.linalg.det(cell / lengths[:, None]) < -DEGENERATE:
        raise DataError(
            "left-handed cell (negative determinant): swap two cell vectors together with "
            "their pbc flags (`right_handed(structure)` does); positions, forces and stress "
            "are Cartesian and stay",
            where,
        )


def right_handed(structure: Structure) -> Structure:
    """The same crystal with cell vectors b and c swapped if they were left-handed."""
    if np.linalg.det(structure.cell) >= 0:
        return structure
    mended = structure.copy()
    mended.cell, mended.pbc = mended.cell[[0, 2, 1]], mended.pbc[[0, 2, 1]]
    return mended


def validate_label(key: str, value: np.ndarray, n_atoms: int, where: str = "") -> None:
    """Check one label: known key, shape, finite values.

    Raises:
        DataError: any of these fails.
    """
    spec = LABELS.get(key)
    if spec is None:
        raise DataError(
            f"unknown label {key!r}: labels are {', '.join(LABELS)}; put others into arrays (per atom) or info",
            where,
        )
    expected = (n_atoms, *spec.shape) if spec.per_atom else spec.shape
    if value.shape != expected:
        raise DataError(f"label {key!r} has shape {value.shape}, expected {expected} ({spec.unit})", where)
    bad = ~np.isfinite(value)
    if bad.any():
        first = f" (atom {int(np.argwhere(bad)[0][0])})" if spec.per_atom else ""
        raise DataError(f"label {key!r} is NaN or infinite{first}: leave out the label or the frame", where)


def missing_labels(asked: tuple[str, ...], present: Mapping[str, Any] | set[str], where: str = "") -> None:
    """Refuse a source in which no frame has an asked label.

    Raises:
        DataError: names the missing label and the ones that are there.
    """
    for key in asked:
        if key not in present:
            there = ", ".join(sorted(present)) or "none"
            raise DataError(
                f"no frame has the label {key!r}; labels present: {there}. Name the key that "
                f"holds it (keys: {key}=NAME), or do not ask for it",
                where,
            )


def _shaped(name: str, value: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.ascontiguousarray(value, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} cannot be read as {np.dtype(dtype).name}: {error}") from None
    if array.size == 0 and shape[0] in (-1, 0):
        return array.reshape(0, *shape[1:])
    if array.ndim != len(shape) or any(s not in (-1, n) for s, n in zip(shape, array.shape, strict=True)):
        raise DataError(f"{name} has shape {array.shape}, expected {shape}".replace("-1", "n"))
    return array
