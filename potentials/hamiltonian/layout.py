"""Orbitals of a molecule in PySCF's order, and the same matrix as padded blocks of atoms and of pairs of atoms.

A block has room for the largest set of shells among the elements: ``n_s`` s functions, then ``n_p`` p shells, and so
on; the k-th shell of degree l of an atom takes the k-th place of that degree, the rest is padding (zero, masked).
Inside a shell the order is m = -l..l with z as polar axis: d and higher as in PySCF, p as (y, z, x) where PySCF has
(x, y, z).
Source: SPHNet (arXiv 2502.01171) and QHNet (arXiv 2306.04922), orbital layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...datasets.elements import symbol
from ...datasets.errors import UserError
from ...kernels.conventions import ZPOLAR_P_TO_PYSCF
from ...kernels.rotations import wigner_d

LETTERS = "spdfghi"

# Shells per element in PySCF's order (all s, then all p, ...), as "number and letter".
_TABLES: dict[str, dict[str, Iterable[int]]] = {
    "def2-svp": {
        "2s1p": (1, 2),
        "3s2p": (3, 4),
        "3s2p1d": range(5, 11),
        "4s2p1d": (11,),
        "4s3p1d": range(12, 19),
    },
    "def2-tzvp": {
        "3s1p": (1, 2),
        "5s3p": (3,),
        "5s3p1d": (4,),
        "5s3p2d1f": range(5, 11),
        "5s4p3d": (11, 12),
        "5s5p2d1f": range(13, 19),
    },
}
_USUAL = {"def2-svp": (1, 6, 7, 8, 9), "def2-tzvp": (1, 6, 7, 8, 9, 15, 16, 17)}


@dataclass(frozen=True)
class Blocks:
    """A symmetric matrix over orbitals as padded blocks; one molecule, or several one after the other."""

    diagonal: Tensor
    """``(n_atoms, B, B)`` blocks of atoms."""
    lower: Tensor
    """``(n_pairs, B, B)`` blocks of pairs (i, j), i > j, rows of atom i and columns of atom j; see `pair_index`."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Blocks:
        """The same blocks on another device or in another precision."""
        return Blocks(self.diagonal.to(device, dtype), self.lower.to(device, dtype))

    def split(self, n_atoms: Iterable[int]) -> list[Blocks]:
        """Blocks of each molecule of a batch, from their numbers of atoms."""
        atoms = [int(n) for n in n_atoms]
        pairs = [n * (n - 1) // 2 for n in atoms]
        return [Blocks(*both) for both in zip(self.diagonal.split(atoms), self.lower.split(pairs), strict=True)]


def pair_index(n_atoms: int) -> Tensor:
    """Pairs ``(2, n(n-1)/2)`` of one molecule: rows i and j with i > j, ordered by i, then by j."""
    return torch.tril_indices(n_atoms, n_atoms, offset=-1)


def _spell(shells: tuple[int, ...]) -> str:
    return "".join(f"{shells.count(l)}{LETTERS[l]}" for l in sorted(set(shells)))


def parse_shells(text: str) -> tuple[int, ...]:
    """Degrees of shells from a text like "3s2p1d": (0, 0, 0, 1, 1, 2)."""
    return tuple(LETTERS.index(x) for count, x in re.findall(r"(\d+)([a-z])", text) for _ in range(int(count)))


@dataclass(frozen=True)
class OrbitalLayout:
    """Where every orbital of every element lies in the common padded block."""

    basis: str
    """Name of the basis set, lower case."""
    shells: tuple[tuple[int, tuple[int, ...]], ...]
    """(atomic number, degrees of its shells in PySCF's order) by atomic number."""

    @classmethod
    def from_mapping(cls, basis: str, shells: Mapping[int, Iterable[int]]) -> OrbitalLayout:
        """Layout from the degrees of the shells of each atomic number, as PySCF lists them."""
        table = {int(z): tuple(int(l) for l in degrees) for z, degrees in shells.items()}
        for z, degrees in table.items():
            if list(degrees) != sorted(degrees):
                raise UserError(f"{basis}: the shells of {symbol(z)} are not sorted by degree: {degrees}")
        return cls(basis.lower(), tuple(sorted(table.items())))

    def header(self) -> dict[str, object]:
        """What a file needs to build the layout again: {"basis": ..., "shells": {"6": "3s2p1d", ...}}."""
        return {"basis": self.basis, "shells": {str(z): _spell(degrees) for z, degrees in self.shells}}

    @classmethod
    def from_header(cls, header: Mapping[str, object]) -> OrbitalLayout:
        """Inverse of `header`."""
        shells = header["shells"]
        if not isinstance(shells, Mapping):
            raise UserError(f"the shells of a layout must be a table element: shells, got {shells!r}")
        return cls.from_mapping(str(header["basis"]), {int(z): parse_shells(text) for z, text in shells.items()})

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the layout knows, ascending."""
        return tuple(z for z, _ in self.shells)

    @cached_property
    def irreps(self) -> tuple[int, ...]:
        """Number of shells of each degree l = 0, 1, ... in the padded block; (3, 2, 1) for def2-SVP of H to F."""
        lmax = max(max(degrees) for _, degrees in self.shells)
        return tuple(max(degrees.count(l) for _, degrees in self.shells) for l in range(lmax + 1))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First index of each degree in the padded block, and B."""
        widths = [n * (2 * l + 1) for l, n in enumerate(self.irreps)]
        return tuple(int(x) for x in np.cumsum([0, *widths]))

    @property
    def size(self) -> int:
        """Number B of functions of the padded block."""
        return self.offsets[-1]

    @cached_property
    def places(self) -> dict[int, Tensor]:
        """Index in the padded block of each orbital of an element, in PySCF's order; ``{z: (n_orbitals,)}``."""
        return {z: torch.tensor(self._places(degrees)) for z, degrees in self.shells}

    def _places(self, degrees: tuple[int, ...]) -> list[int]:
        places: list[int] = []
        for k, l in enumerate(degrees):
            start = self.offsets[l] + (2 * l + 1) * (k - degrees.index(l))
            order = ZPOLAR_P_TO_PYSCF if l == 1 else range(2 * l + 1)
            places += [start + m for m in order]
        return places

    @cached_property
    def element_mask(self) -> Tensor:
        """``(max Z + 1, B)`` bool: functions of the padded block that an atom of atomic number Z has."""
        mask = torch.zeros(max(self.elements) + 1, self.size, dtype=torch.bool)
        for z, places in self.places.items():
            mask[z, places] = True
        return mask

    def require(self, numbers: Iterable[int], where: str = "") -> None:
        """Check that every atom's element is known.

        Raises:
            UserError: an element is not in the layout.
        """
        unknown = sorted({int(z) for z in numbers} - set(self.elements))
        if unknown:
            names = ", ".join(symbol(z) if 0 < z < 119 else f"Z={z}" for z in unknown)
            known = ", ".join(symbol(z) for z in self.elements)
            raise UserError(f"{where + ': ' if where else ''}no {self.basis} orbitals for {names}; there are {known}")

    def n_orbitals(self, numbers: Iterable[int]) -> int:
        """Number of orbitals of a molecule of these atomic numbers."""
        return sum(len(self.places[int(z)]) for z in numbers)

    def orbital_index(self, numbers: Tensor) -> Tensor:
        """``(n_orbitals,)``: index of each orbital of a molecule in its padded ``n_atoms * B`` functions."""
        atoms = [self.size * a + self.places[int(z)] for a, z in enumerate(numbers.tolist())]
        return torch.cat(atoms).to(numbers.device)

    def to_blocks(self, matrix: Tensor, numbers: Tensor) -> Blocks:
        """Padded blocks of a symmetric matrix in PySCF's order.

        Args:
            matrix: ``(n_orbitals, n_orbitals)``.
            numbers: ``(n_atoms,)`` atomic numbers.

        Raises:
            UserError: an element is unknown, or the matrix is not of this molecule.
        """
        self.require(numbers.tolist())
        index = self.orbital_index(numbers)
        if matrix.shape != (len(index), len(index)):
            raise UserError(
                f"the matrix is {tuple(matrix.shape)}, {self.basis} gives this molecule {len(index)} orbitals"
            )
        n, size = len(numbers), self.size
        padded = matrix.new_zeros(n * size, n * size)
        padded[index[:, None], index] = matrix
        blocks = padded.view(n, size, n, size).transpose(1, 2)
        i, j = pair_index(n).to(matrix.device)
        atoms = torch.arange(n, device=matrix.device)
        return Blocks(blocks[atoms, atoms], blocks[i, j])

    def to_matrix(self, blocks: Blocks, numbers: Tensor) -> Tensor:
        """Symmetric matrix ``(n_orbitals, n_orbitals)`` in PySCF's order from the blocks of one molecule."""
        self.require(numbers.tolist())
        n, size = len(numbers), self.size
        i, j = pair_index(n).to(blocks.lower.device)
        atoms = torch.arange(n, device=i.device)
        full = blocks.diagonal.new_zeros(n, n, size, size)
        full[atoms, atoms] = blocks.diagonal
        full[i, j] = blocks.lower
        full[j, i] = blocks.lower.transpose(1, 2)
        index = self.orbital_index(numbers)
        return full.transpose(1, 2).reshape(n * size, n * size)[index[:, None], index]

    def masks(self, numbers: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Real entries of the blocks of atoms ``(N, B, B)`` and of the pairs ``(P, B, B)``, bool.

        Args:
            numbers: ``(N,)`` atomic numbers, of one molecule or of a batch.
            pairs: ``(2, P)`` atoms of each pair.
        """
        atoms = self.element_mask.to(numbers.device)[numbers]
        diagonal = atoms[:, :, None] & atoms[:, None, :]
        return diagonal, atoms[pairs[0], :, None] & atoms[pairs[1], None, :]

    def rotation(self, rotation: Tensor) -> Tensor:
        """Matrix D ``(B, B)`` that turns the functions of an atom with the molecule: ``H(Rx) = D H(x) D^T`` by blocks.

        Args:
            rotation: ``(3, 3)`` orthogonal matrix; improper ones turn p and f functions with their parity.
        """
        polar = rotation[[1, 2, 0]][:, [1, 2, 0]]  # our harmonics of the turned axes are the z-polar ones of (x, y, z)
        degrees = wigner_d(polar, len(self.irreps) - 1)
        return torch.block_diag(*(degrees[l] for l, n in enumerate(self.irreps) for _ in range(n)))

    def matrix_rotation(self, rotation: Tensor, numbers: Tensor) -> Tensor:
        """The same for a whole molecule in PySCF's order, ``(n_orbitals, n_orbitals)``."""
        block = self.rotation(rotation)
        return torch.block_diag(*(block[self.places[z][:, None], self.places[z]] for z in numbers.tolist()))


def layout(basis: str, elements: Iterable[int] | None = None) -> OrbitalLayout:
    """Layout of a tabulated basis set; `labels.layout_of` asks PySCF for any other.

    Args:
        basis: "def2-svp" or "def2-tzvp".
        elements: atomic numbers; None: H, C, N, O, F (def2-TZVP: also P, S, Cl).

    Raises:
        UserError: no such table, or an element that is not in it.
    """
    name = basis.lower()
    if name not in _TABLES:
        raise UserError(
            f"no table of the shells of {basis!r}; there are {', '.join(_TABLES)} (others need PySCF: labels.layout_of)"
        )
    table = {z: parse_shells(text) for text, numbers in _TABLES[name].items() for z in numbers}
    whole = OrbitalLayout.from_mapping(name, table)
    chosen = _USUAL[name] if elements is None else tuple(elements)
    whole.require(chosen)
    return OrbitalLayout.from_mapping(name, {z: table[z] for z in chosen})
