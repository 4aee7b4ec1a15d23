"""Molecules inside protein pockets, as the network sees them: one graph of both, in which only the molecule moves.

The origin is the centroid of the pocket, so nothing is centred any more. Edges: all pairs of the molecule, and pairs
within 5 Å between molecule and pocket and inside the pocket; only the former have bond classes.
Source: Le et al., EQGAT-diff, arXiv 2309.17296, structure-based generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.structure import Structure
from .layout import Layout
from .streams import Streams

CUTOFF = 5.0  # Å
JITTER = 0.1  # Å, noise of the pocket's coordinates in training
SMOOTHING = 1e-3  # share of every size between the smallest and the largest
WIDTH = 0.1  # of the kernel over pocket sizes, as a share of the size
OTHER = 0  # class of elements that the training pockets lack


@dataclass(frozen=True)
class PocketFacts:
    """What a model knows of its training pockets.

    elements: atomic numbers with a class of their own, 1 … K; class 0 is any other. radius: Å, residues with an atom
    so near to the molecule were the pocket. reach: Å, mean radius of gyration of the molecules. sizes: (atoms of the
    pocket, atoms of the molecule) of every training pair.
    """

    elements: tuple[int, ...]
    radius: float
    reach: float
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def from_structures(cls, molecules: Sequence[Structure], radius: float) -> PocketFacts:
        """From molecules whose pockets lie in `info["pocket"]`."""
        numbers: set[int] = set()
        reach = []
        for molecule in molecules:
            numbers.update(molecule.info["pocket"].numbers.tolist())
            away = molecule.positions - molecule.positions.mean(0)
            reach.append(float(np.sqrt((away**2).sum(1).mean())))
        sizes = tuple((m.info["pocket"].n_atoms, m.n_atoms) for m in molecules)
        return cls(tuple(sorted(numbers)), radius, float(np.mean(reach)), sizes)

    @property
    def n_classes(self) -> int:
        return len(self.elements) + 1

    def encode(self, pocket: Structure) -> EncodedPocket:
        """Classes, coordinates around the centroid, and edges of a pocket."""
        table = {z: k + 1 for k, z in enumerate(self.elements)}
        classes = np.array([table.get(int(z), OTHER) for z in pocket.numbers], dtype=np.int64)
        positions = pocket.positions - pocket.positions.mean(0)
        return EncodedPocket(classes, positions, near_pairs(positions))

    def draw_sizes(self, n_pocket: int, uniform: np.ndarray) -> np.ndarray:
        """Numbers of atoms ``(n,)`` of molecules for a pocket of `n_pocket` atoms, from `uniform` in [0, 1).

        Training pairs count by how alike their pocket is in size; every size in between is possible.
        """
        pockets, molecules = np.array(self.sizes).T
        away = np.abs(pockets - n_pocket) / (WIDTH * n_pocket)
        weights = np.exp(-0.5 * (away - away.min()) * (away + away.min()))  # the most alike pocket counts 1
        sizes = np.arange(molecules.min(), molecules.max() + 1)
        shares = np.bincount(molecules - sizes[0], weights, len(sizes)) / weights.sum() + SMOOTHING
        steps = np.cumsum(shares / shares.sum())
        return sizes[np.minimum(np.searchsorted(steps, uniform, side="right"), len(sizes) - 1)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "elements": list(self.elements),
            "radius": self.radius,
            "reach": self.reach,
            "sizes": [list(pair) for pair in self.sizes],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PocketFacts:
        sizes = tuple((int(a), int(b)) for a, b in data["sizes"])
        return cls(tuple(int(z) for z in data["elements"]), data["radius"], data["reach"], sizes)


@dataclass(frozen=True)
class EncodedPocket:
    """One pocket: classes ``(p,)``, positions ``(p, 3)`` Å around the centroid, edges ``(2, e)`` within 5 Å."""

    classes: np.ndarray
    positions: np.ndarray
    edges: np.ndarray


def near_pairs(positions: np.ndarray) -> np.ndarray:
    """Ordered pairs ``(2, e)`` of atoms within the cut-off, without the pairs of an atom and itself."""
    squared = ((positions[:, None] - positions) ** 2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    return np.stack(np.nonzero(squared <= CUTOFF**2))


@dataclass(frozen=True)
class JointGraph:
    """What the network asks of a graph, for molecules with pockets; see `Layout` for the meaning.

    bonded: ``(2, P)`` both edges of each pair of the molecule. between: ``(E_m,)`` places of the molecule's edges,
    in the order of its layout. movable: ``(N,)`` atoms that the network may shift.
    """

    n_atoms: Tensor
    n_movable: Tensor
    batch: Tensor
    edge_index: Tensor
    degree: Tensor
    bonded: Tensor
    between: Tensor
    movable: Tensor

    @property
    def n_molecules(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def edge_batch(self) -> Tensor:
        """Molecule of each edge ``(E,)``."""
        return self.batch[self.edge_index[1]]

    def centred(self, x: Tensor) -> Tensor:
        """`x` itself: the pocket gives the origin."""
        return x


@dataclass(frozen=True)
class Pockets:
    """The pockets of a batch of molecules, and what of the joint graph does not depend on coordinates.

    positions ``(P, 3)``, classes ``(P,)``, batch ``(P,)``: atoms of all pockets. layout: of the molecules.
    ligand ``(N_m,)``, nodes ``(P,)``: place of each atom in the joint graph, in which each molecule comes before its
    pocket. inside ``(2, e)``: edges of the molecules, then of the pockets, in the joint graph.
    cross ``(2, c)``: all (atom of a molecule, atom of its pocket), each in its own numbers.
    """

    layout: Layout
    positions: Tensor
    classes: Tensor
    batch: Tensor
    ligand: Tensor
    nodes: Tensor
    inside: Tensor
    cross: Tensor
    n_atoms: Tensor = field(kw_only=True)

    @classmethod
    def around(cls, layout: Layout, pockets: Sequence[EncodedPocket], dtype: torch.dtype) -> Pockets:
        """One pocket for each molecule of a layout; on the layout's device."""
        device = layout.n_atoms.device
        sizes = torch.tensor([len(p.classes) for p in pockets], device=device)
        n_atoms = layout.n_atoms + sizes
        first = n_atoms.cumsum(0) - n_atoms
        batch = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
        start = sizes.cumsum(0) - sizes  # of each pocket among the atoms of all pockets
        local = torch.arange(len(batch), device=device) - start[batch]
        ligand = first[layout.batch] + layout.local
        nodes = first[batch] + layout.n_atoms[batch] + local
        edges = np.concatenate([p.edges + o for p, o in zip(pockets, start.tolist(), strict=True)], 1)
        within = nodes[torch.from_numpy(edges).to(device)]
        of_atom = sizes[layout.batch]
        atom = torch.repeat_interleave(torch.arange(len(of_atom), device=device), of_atom)
        place = torch.arange(len(atom), device=device) - (of_atom.cumsum(0) - of_atom)[atom]
        return cls(
            layout,
            torch.from_numpy(np.concatenate([p.positions for p in pockets])).to(device, dtype),
            torch.from_numpy(np.concatenate([p.classes for p in pockets])).to(device),
            batch,
            ligand,
            nodes,
            torch.cat([ligand[layout.edge_index], within], 1),
            torch.stack([atom, start[layout.batch[atom]] + place]),
            n_atoms=n_atoms,
        )

    def jittered(self, streams: Streams) -> Pockets:
        """The same pockets with a little noise on their coordinates, for training."""
        number = torch.arange(len(self.batch), device=self.batch.device)
        counter = 3 * number.unsqueeze(1) + torch.arange(3, device=self.batch.device)
        noise = streams.normal(self.batch.unsqueeze(1), counter).to(self.positions.dtype)
        return replace(self, positions=self.positions + JITTER * noise)

    def graph(self, positions: Tensor) -> JointGraph:
        """The joint graph for the present positions ``(N_m, 3)`` of the molecules."""
        atom, other = self.cross
        near = (positions[atom] - self.positions[other]).square().sum(-1) <= CUTOFF**2
        a, b = self.ligand[atom[near]], self.nodes[other[near]]
        edges = torch.cat([self.inside, torch.stack([a, b]), torch.stack([b, a])], 1)
        n_nodes, layout = len(self.ligand) + len(self.nodes), self.layout
        order = torch.argsort(edges[1] * n_nodes + edges[0])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        between = place[: len(layout.reverse)]
        movable = torch.zeros(n_nodes, dtype=torch.bool, device=order.device)
        movable[self.ligand] = True
        molecules = torch.arange(layout.n_molecules, device=order.device)
        return JointGraph(
            n_atoms=self.n_atoms,
            n_movable=layout.n_atoms,
            batch=torch.repeat_interleave(molecules, self.n_atoms),
            edge_index=edges[:, order],
            degree=torch.bincount(edges[1], minlength=n_nodes),
            bonded=between[layout.bonded],
            between=between,
            movable=movable,
        )

    def spread(self, values: Tensor, of_pocket: Tensor | None = None) -> Tensor:
        """Values ``(N, …)`` of the joint graph from those of the molecules and of the pockets, zero if none."""
        full = values.new_zeros(len(self.ligand) + len(self.nodes), *values.shape[1:])
        full[self.ligand] = values
        if of_pocket is not None:
            full[self.nodes] = of_pocket.to(values.dtype)
        return full

    def to(self, device: Any) -> Pockets:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})
