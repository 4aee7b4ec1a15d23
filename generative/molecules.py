"""Molecules as generators see them: ragged batches, every ordered pair of atoms an edge with a bond class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.structure import Structure
from .conditions import Conditions, property_of
from .eqgat import Prediction
from .hydrogens import implicit_hydrogens
from .layout import Layout
from .pocket import EncodedPocket, PocketFacts, Pockets
from .vocabulary import ARRAYS, NO_BOND, Vocabulary, atom_values, check_bonds


@dataclass(frozen=True)
class Encoded:
    """One molecule in classes: atoms ``(n, K)`` int64, positions ``(n, 3)`` Å centred, bonds ``(n, n)`` symmetric.

    context: ``(C,)`` standardised properties. pocket: where the molecule lies; the positions are then those around the
    pocket's centroid.
    """

    atoms: np.ndarray
    positions: np.ndarray
    bonds: np.ndarray
    context: np.ndarray | None = None
    pocket: EncodedPocket | None = None

    @property
    def n_edges(self) -> int:
        return count_edges(len(self.atoms), self.pocket)


def count_edges(n_atoms: int, pocket: EncodedPocket | None = None) -> int:
    """Ordered pairs of atoms that a network computes for a molecule; those between it and a pocket are estimated."""
    pairs = n_atoms * (n_atoms - 1)
    if pocket is None:
        return pairs
    inside = pocket.edges.shape[1]
    return pairs + inside + 2 * n_atoms * inside // len(pocket.classes)


def encode(
    structure: Structure,
    vocabulary: Vocabulary,
    where: str = "",
    *,
    conditions: Conditions | None = None,
    pockets: PocketFacts | None = None,
) -> Encoded:
    """The classes of a molecule; its positions without their mean.

    Args:
        conditions: properties in `structure.info` that become the context.
        pockets: the molecule lies in the pocket `structure.info["pocket"]`.

    Raises:
        DataError: no bonds, an element, charge or bond that the vocabulary lacks, or no such property.
    """
    check_bonds(structure, where)
    columns = [
        classes.encode(atom_values(structure, name, where), name, where) for name, classes in vocabulary.atoms.items()
    ]
    n = structure.n_atoms
    none = vocabulary.bonds.values.index(NO_BOND)
    bonds = np.full((n, n), none, dtype=np.int8)
    if structure.bonds is not None and len(structure.bonds):
        i, j, order = structure.bonds.T
        bonds[i, j] = bonds[j, i] = vocabulary.bonds.encode(order, "bond order", where)
    values = () if conditions is None else [property_of(structure, n, where) for n in conditions.names]
    origin = structure if pockets is None else structure.info["pocket"]
    return Encoded(
        np.stack(columns, 1),
        structure.positions - origin.positions.mean(0),
        bonds,
        None if conditions is None else conditions.standardised(np.array(values)),
        None if pockets is None else pockets.encode(origin),
    )


@dataclass(frozen=True)
class Molecules:
    """A batch of molecules, clean or noisy.

    atoms: ``(N, K)`` int64 class of each variable. bonds: ``(E,)`` int64 class of each edge, symmetric. (In a noisy
    state of Gaussian classes: their channels, ``(N, A)`` and ``(E, B)``.)
    positions: ``(N, 3)`` Å. weight: 0 for a batch with which a process only keeps in step with the others.
    context: ``(G, C)`` standardised properties. pockets: where the molecules lie, if anywhere.
    estimate: the last prediction of the clean molecules, on the way from noise to molecules.
    """

    layout: Layout
    atoms: Tensor
    bonds: Tensor
    positions: Tensor
    weight: float = 1.0
    context: Tensor | None = None
    pockets: Pockets | None = None
    estimate: Prediction | None = None

    def centred(self, x: Tensor) -> Tensor:
        """`x` ``(N, …)`` minus the mean of its molecule; inside a pocket, which gives the origin, `x` itself."""
        return self.layout.centred(x) if self.pockets is None else x

    def to(self, device: Any) -> Molecules:
        """On another device, without the estimate."""
        return replace(
            self,
            layout=self.layout.to(device),
            atoms=self.atoms.to(device),
            bonds=self.bonds.to(device),
            positions=self.positions.to(device),
            context=None if self.context is None else self.context.to(device),
            pockets=None if self.pockets is None else self.pockets.to(device),
            estimate=None,
        )


def collate(molecules: Sequence[Encoded], dtype: torch.dtype = torch.float32) -> Molecules:
    """One batch of encoded molecules, positions in `dtype`."""
    sizes = np.array([len(m.atoms) for m in molecules], dtype=np.int64)
    bonds = [m.bonds[~np.eye(len(m.bonds), dtype=bool)] for m in molecules]
    layout = Layout.of(torch.from_numpy(sizes))
    context = [m.context for m in molecules if m.context is not None]
    pockets = [m.pocket for m in molecules if m.pocket is not None]
    return Molecules(
        layout,
        torch.from_numpy(np.concatenate([m.atoms for m in molecules])),
        torch.from_numpy(np.concatenate(bonds).astype(np.int64)),
        torch.from_numpy(np.concatenate([m.positions for m in molecules])).to(dtype),
        context=torch.from_numpy(np.stack(context)).to(dtype) if context else None,
        pockets=Pockets.around(layout, pockets, dtype) if pockets else None,
    )


def decode(batch: Molecules, vocabulary: Vocabulary) -> list[Structure]:
    """The structures of a batch: elements, bonds, formal charges, hydrogens that are no atoms; further variables.

    Charges, implicit hydrogens (where the vocabulary has none of their own) and further variables are in `arrays`.
    """
    sizes = batch.layout.n_atoms.tolist()
    atoms = _split(batch.atoms, sizes)
    positions = _split(batch.positions.double(), sizes)
    bonds = _split(batch.bonds, [n * (n - 1) for n in sizes])
    return [_decode_one(vocabulary, *parts) for parts in zip(atoms, positions, bonds, strict=True)]


def _decode_one(vocabulary: Vocabulary, atoms: np.ndarray, positions: np.ndarray, bonds: np.ndarray) -> Structure:
    n = len(atoms)
    values = {name: classes.decode(atoms[:, k]) for k, (name, classes) in enumerate(vocabulary.atoms.items())}
    orders = np.zeros((n, n), dtype=np.int64)
    orders[~np.eye(n, dtype=bool)] = vocabulary.bonds.decode(bonds)
    i, j = np.nonzero(np.triu(orders))
    numbers = values.pop("element")
    found = Structure(
        numbers=numbers,
        positions=positions,
        charge=float(values["charge"].sum()),
        bonds=np.stack([i, j, orders[i, j]], 1),
        arrays={ARRAYS.get(name, name): array for name, array in values.items()},
    )
    if vocabulary.implicit_hydrogens:
        found.arrays["implicit_hydrogens"] = implicit_hydrogens(found)
    return found


def _split(values: Tensor, sizes: list[int]) -> list[np.ndarray]:
    return np.split(values.cpu().numpy(), np.cumsum(sizes)[:-1])
