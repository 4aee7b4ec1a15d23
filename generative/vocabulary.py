"""What a generator knows of its data: classes of elements, charges and bonds with their frequencies, and sizes.

Derived from any set of molecules in one streaming pass, and stored in the checkpoint's header as plain JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets.elements import NUMBERS, symbol
from ..datasets.errors import DataError
from ..datasets.structure import Structure

FLOOR = 1e-5  # least frequency of a class: one that never occurs would make posteriors 0/0
NO_BOND = 0
BOND_NAMES = {0: "none", 1: "single", 2: "double", 3: "triple", 4: "aromatic"}
ARRAYS = {"charge": "formal_charges"}  # variable -> Structure.arrays, where the names differ


@dataclass(frozen=True)
class Classes:
    """The values that one discrete variable takes, and how frequent each is.

    values: distinct integers; a class is an index into them. frequencies: of the same length, positive, sum 1.
    """

    values: tuple[int, ...]
    frequencies: tuple[float, ...]

    @classmethod
    def from_counts(cls, counts: Mapping[int, float]) -> Classes:
        """Classes in the order of `counts`, no frequency below :data:`FLOOR`."""
        numbers = np.array(list(counts.values()), dtype=np.float64)
        floored = np.maximum(numbers / max(numbers.sum(), 1e-300), FLOOR)
        return cls(tuple(int(v) for v in counts), tuple((floored / floored.sum()).tolist()))

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, values: np.ndarray, what: str, where: str = "") -> np.ndarray:
        """Class indices, int64, of integer `values` of any shape.

        Raises:
            DataError: a value without a class.
        """
        table = {value: index for index, value in enumerate(self.values)}
        try:
            return np.array([table[int(v)] for v in values.ravel()], dtype=np.int64).reshape(values.shape)
        except KeyError as error:
            known = ", ".join(map(str, self.values))
            raise DataError(
                f"{what} {error.args[0]} does not occur in the model's vocabulary ({known})", where
            ) from None

    def decode(self, classes: np.ndarray) -> np.ndarray:
        """Values, int64, of class indices of any shape."""
        return np.array(self.values, dtype=np.int64)[classes]


@dataclass(frozen=True)
class Vocabulary:
    """Classes of every discrete variable of a molecule, and how many atoms molecules have.

    atoms: variables of an atom, always "element" (atomic number) and "charge" (formal); more may follow (arrays of
        the structures, as "ring"). bonds: of a pair of atoms, value 0 = none first, then the codes of
        `Structure.bonds`. sizes: number of molecules by number of atoms.
    """

    atoms: dict[str, Classes]
    bonds: Classes
    sizes: dict[int, int]

    @classmethod
    def from_structures(cls, structures: Iterable[Structure], extra: tuple[str, ...] = ()) -> Vocabulary:
        """One pass over molecules; nothing is kept of them.

        Args:
            structures: with bonds; formal charges in `arrays["formal_charges"]`, absent = 0.
            extra: further per-atom integer arrays that become variables.

        Raises:
            DataError: no molecule, or one without usable bonds, with its place in the sequence.
        """
        names = ("element", "charge", *extra)
        counts: dict[str, Counter[int]] = {name: Counter() for name in names}
        counts["charge"][0] = 0
        bonds: Counter[int] = Counter()
        sizes: Counter[int] = Counter()
        for k, structure in enumerate(structures):
            where = f"molecule {k}"
            check_bonds(structure, where)
            for name in names:
                counts[name].update(atom_values(structure, name, where).tolist())
            orders = structure.bonds[:, 2].tolist() if structure.bonds is not None else []
            n = structure.n_atoms
            bonds.update(orders)
            bonds[NO_BOND] += n * (n - 1) // 2 - len(orders)
            sizes[n] += 1
        if not sizes:
            raise DataError("the data set has no molecules")
        sorted_counts = {name: dict(sorted(count.items())) for name, count in counts.items()}
        bonds.setdefault(NO_BOND, 0)
        return cls(
            {name: Classes.from_counts(count) for name, count in sorted_counts.items()},
            Classes.from_counts(dict(sorted(bonds.items()))),
            dict(sorted(sizes.items())),
        )

    def recounted(self, structures: Iterable[Structure]) -> Vocabulary:
        """The same classes with the frequencies and sizes of other data, for fine-tuning.

        Raises:
            DataError: the data have a value that is no class here.
        """
        new = Vocabulary.from_structures(structures, extra=tuple(self.atoms)[2:])
        atoms = {name: _recount(classes, new.atoms[name], name) for name, classes in self.atoms.items()}
        return Vocabulary(atoms, _recount(self.bonds, new.bonds, "bond order"), new.sizes)

    @property
    def n_atom_channels(self) -> int:
        """Classes of all variables of an atom together: channels of the network's one-hot input."""
        return sum(len(classes) for classes in self.atoms.values())

    @property
    def implicit_hydrogens(self) -> bool:
        """Whether molecules come without hydrogen atoms, to be filled in by valence."""
        return NUMBERS["H"] not in self.atoms["element"].values

    def draw_sizes(self, uniform: np.ndarray) -> np.ndarray:
        """Numbers of atoms ``(n,)`` int64 from the histogram, one for each number in [0, 1)."""
        counts = np.array(list(self.sizes.values()), dtype=np.float64)
        steps = np.cumsum(counts / counts.sum())
        index = np.minimum(np.searchsorted(steps, uniform, side="right"), len(counts) - 1)
        return np.array(list(self.sizes), dtype=np.int64)[index]

    def summary(self) -> str:
        """One line: elements, charges, bonds, sizes."""
        elements = " ".join(symbol(z) for z in self.atoms["element"].values)
        charges = " ".join(f"{q:+d}" if q else "0" for q in self.atoms["charge"].values)
        bonds = " ".join(BOND_NAMES[b] for b in self.bonds.values if b != NO_BOND)
        sizes = list(self.sizes)
        return f"elements {elements}; charges {charges}; bonds {bonds}; {sizes[0]}-{sizes[-1]} atoms"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; :meth:`from_dict` reads it back to an equal object."""
        return {
            "atoms": {name: _plain(classes) for name, classes in self.atoms.items()},
            "bonds": _plain(self.bonds),
            "sizes": {str(n): count for n, count in self.sizes.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        return cls(
            {name: _classes(classes) for name, classes in data["atoms"].items()},
            _classes(data["bonds"]),
            {int(n): int(count) for n, count in data["sizes"].items()},
        )


def atom_values(structure: Structure, name: str, where: str = "") -> np.ndarray:
    """Integer values ``(n,)`` of one per-atom variable of a structure.

    Raises:
        DataError: an extra variable that the structure has no array of.
    """
    if name == "element":
        return structure.numbers
    array = structure.arrays.get(ARRAYS.get(name, name))
    if array is not None:
        return array
    if name == "charge":
        return np.zeros(structure.n_atoms, dtype=np.int64)
    raise DataError(f"the molecule has no per-atom array {name!r}", where)


def check_bonds(structure: Structure, where: str = "") -> None:
    """Refuse a structure that is no molecular graph with bond orders.

    Raises:
        DataError: no atoms, no bonds known, or bonds that are not single, double, triple or aromatic.
    """
    if not structure.n_atoms:
        raise DataError("the molecule has no atoms", where)
    if structure.bonds is None:
        raise DataError("no bonds are known: give SDF, or bonds in the file", where)
    odd = [b for b in structure.bonds[:, 2].tolist() if b not in BOND_NAMES or b == NO_BOND]
    if odd:
        raise DataError("a bond is neither single, double, triple nor aromatic (dative or query bond)", where)
    pairs = np.sort(structure.bonds[:, :2], axis=1)
    if len(np.unique(pairs, axis=0)) != len(pairs):
        raise DataError("a pair of atoms is bonded twice", where)


def published_vocabulary(extra: bool = False) -> Vocabulary:
    """The fixed classes of EQGAT-diff's release (16 elements, 6 charges, 5 bonds) with its QM9 frequencies.

    extra: with ring, aromatic and hybridisation, which make 35 input channels of 22. The frequencies of these and
    the one size are placeholders: the published tables of QM9 have none.
    """
    elements = dict.fromkeys(("H B C N O F Al Si P S Cl As Br I Hg Bi").split(), 0.0)
    elements.update(H=0.51207, C=0.35283, N=0.05618, O=0.07764, F=0.00129)
    charges = {-2: 0.0, -1: 0.00379, 0: 0.98559, 1: 0.01062, 2: 0.0, 3: 0.0}
    bonds = {0: 0.88177, 1: 0.11046, 2: 0.00598, 3: 0.00179, 4: 0.0}
    counts: dict[str, dict[int, float]] = {
        "element": {NUMBERS[name]: share for name, share in elements.items()},
        "charge": charges,
    }
    if extra:
        counts |= {
            "ring": {0: 1, 1: 1},
            "aromatic": {0: 1, 1: 1},
            "hybridisation": dict.fromkeys(range(9), 1),
        }
    atoms = {name: Classes.from_counts(count) for name, count in counts.items()}
    return Vocabulary(atoms, Classes.from_counts(bonds), {18: 1})


def _recount(classes: Classes, new: Classes, what: str) -> Classes:
    classes.encode(np.array(new.values), what, "the new data")
    shares = dict(zip(new.values, new.frequencies, strict=True))
    return Classes.from_counts({value: shares.get(value, 0.0) for value in classes.values})


def _plain(classes: Classes) -> dict[str, list[Any]]:
    return {"values": list(classes.values), "frequencies": list(classes.frequencies)}


def _classes(data: Mapping[str, Any]) -> Classes:
    return Classes(tuple(int(v) for v in data["values"]), tuple(float(f) for f in data["frequencies"]))
