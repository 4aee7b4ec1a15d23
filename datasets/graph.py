"""Graph: one batch of structures as tensors, the only thing a potential sees.

Conventions (binding for the whole package): `edge_index[0]` = source j (neighbour), `edge_index[1]` = target
i (centre), edges sorted by target with row pointers; edge vector = r_j + shift·cell − r_i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

from .errors import DataError, UserError
from .neighbors import Neighbors, neighbor_list
from .structure import LABELS, Structure


@dataclass
class Graph:
    """A batch of G structures with N atoms and E directed edges.

    numbers (N,) int64 atomic numbers; positions (N, 3) Å; cell (G, 3, 3) Å; pbc (G, 3) bool; batch (N,) int64
    structure of each atom; n_atoms (G,) int64; edge_index (2, E) int64; shifts (E, 3) integer image offsets
    in the dtype of the positions; row_ptr (N + 1,) int64: the edges of target i are row_ptr[i]:row_ptr[i +
    1]; charge (G,) e and spin (G,) multiplicity, each None unless every structure states it; labels: energy
    (G,) float64 eV, forces (N, 3) eV/Å, stress (G, 6) eV/Å³ … only those asked for; masks: per label (G,)
    bool, False where the structure lacks it (the label then holds 0); groups: the config_type of every
    structure, or None.
    """

    numbers: torch.Tensor
    positions: torch.Tensor
    cell: torch.Tensor
    pbc: torch.Tensor
    batch: torch.Tensor
    n_atoms: torch.Tensor
    edge_index: torch.Tensor
    shifts: torch.Tensor
    row_ptr: torch.Tensor
    charge: torch.Tensor | None = None
    spin: torch.Tensor | None = None
    labels: dict[str, torch.Tensor] = field(default_factory=dict)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    groups: list[str] | None = None

    @property
    def n_graphs(self) -> int:
        return self.n_atoms.shape[0]

    @property
    def n_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def edge_vectors(self) -> torch.Tensor:
        """Edge vectors (E, 3) in Å, r_j + shift·cell − r_i; differentiable in positions and cell."""
        source, target = self.edge_index[0], self.edge_index[1]
        vectors = self.positions.index_select(0, source) - self.positions.index_select(0, target)
        if self.n_graphs == 1:
            return vectors + self.shifts @ self.cell[0]
        lattice = self.cell.index_select(0, self.batch.index_select(0, target))
        return vectors + torch.einsum("ei,eij->ej", self.shifts, lattice)

    def require(self, name: str) -> torch.Tensor:
        """The input "charge" or "spin" (G,); UserError when a structure of the batch does not state it."""
        value: torch.Tensor | None = getattr(self, name)
        if value is None:
            raise UserError(
                f"the model takes the {name} of each structure as input, and at least one states none: "
                f"set structure.{name} (ASE: atoms.info['{name}']), there is no default"
            )
        return value

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Graph:
        """The graph on another device and/or in another floating dtype (energies stay float64).

        Copies from pinned memory do not block.
        """

        def move(key: str, tensor: torch.Tensor) -> torch.Tensor:
            target = dtype if tensor.is_floating_point() and key != "energy" else None
            pinned = device is not None and tensor.device.type == "cpu" and tensor.is_pinned()
            return tensor.to(device=device, dtype=target, non_blocking=pinned)

        return self._map(move)

    def pin_memory(self) -> Graph:
        """The graph in page-locked memory (the hook that torch's DataLoader calls)."""
        return self._map(lambda _, tensor: tensor.pin_memory())

    def detach(self) -> Graph:
        """Aliases of all tensors: what autograd learns about them stays unknown to this graph."""
        return self._map(lambda _, tensor: tensor.detach())

    def _map(self, function: Callable[[str, torch.Tensor], torch.Tensor]) -> Graph:
        changed: dict = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, torch.Tensor):
                changed[item.name] = function(item.name, value)
            elif isinstance(value, dict):
                changed[item.name] = {key: function(key, tensor) for key, tensor in value.items()}
        return replace(self, **changed)

    def _tensors(self) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, torch.Tensor):
                found.append(value)
            elif isinstance(value, dict):
                found.extend(value.values())
        return found


def graph_from_structure(
    structure: Structure,
    cutoff: float,
    *,
    dtype: torch.dtype = torch.float32,
    labels: Sequence[str] = (),
    neighbors: Neighbors | None = None,
) -> Graph:
    """The graph of one structure.

    Arguments: cutoff Å; dtype of positions, cell and labels (energies are float64); labels: which labels to
    carry, masked where the structure lacks them; neighbors: (source, target, shifts) from a SkinList instead
    of a new list.
    Raises UserError for bad geometry, unknown label names and labels of a wrong shape.
    """
    n = structure.n_atoms
    if neighbors is None:
        neighbors = neighbor_list(structure.positions, structure.cell, structure.pbc, cutoff)
    source, target, shifts = neighbors
    row_ptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(target, minlength=n), out=row_ptr[1:])
    values, masks = {}, {}
    for key in labels:
        values[key], masks[key] = _label(structure, key, dtype)
    group = structure.info.get("config_type")
    return Graph(
        numbers=torch.from_numpy(structure.numbers.astype(np.int64)),
        positions=torch.from_numpy(structure.positions.astype(np.float64)).to(dtype),
        cell=torch.from_numpy(structure.cell.astype(np.float64)).to(dtype)[None],
        pbc=torch.from_numpy(structure.pbc.astype(bool))[None],
        batch=torch.zeros(n, dtype=torch.int64),
        n_atoms=torch.tensor([n]),
        edge_index=torch.from_numpy(np.stack([source, target])),
        shifts=torch.from_numpy(shifts).to(dtype),
        row_ptr=torch.from_numpy(row_ptr),
        charge=None if structure.charge is None else torch.tensor([structure.charge], dtype=dtype),
        spin=None if structure.spin is None else torch.tensor([int(structure.spin)]),
        labels=values,
        masks=masks,
        groups=None if group is None else [str(group)],
    )


def _label(structure: Structure, key: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """One label as a tensor and its mask (1,); zeros and False where the structure lacks it."""
    if key not in LABELS:
        raise UserError(f"unknown label {key!r}; known labels: {', '.join(LABELS)}")
    per_atom, tail, _ = LABELS[key]
    shape = (structure.n_atoms, *tail) if per_atom else tail
    value = structure.labels.get(key)
    if key == "stress" and not structure.pbc.all():
        value = None  # a structure without three periodic axes has no stress, whatever the file says
    kind = torch.float64 if key == "energy" else dtype
    array = np.zeros(shape) if value is None else np.asarray(value, dtype=np.float64)
    if array.shape != shape and not (shape == () and array.size == 1):
        raise DataError(f"label {key!r} of {structure.formula} has shape {array.shape}, expected {shape}")
    tensor = torch.from_numpy(array.reshape(shape if per_atom else (1, *shape))).to(kind)
    return tensor, torch.tensor([value is not None])


def collate(graphs: Sequence[Graph]) -> Graph:
    """Concatenate graphs into one batch, in the given order.

    Raises UserError when the list is empty or the graphs carry different labels or dtypes.
    """
    if len(graphs) == 0:
        raise UserError("cannot batch an empty list of graphs")
    if len(graphs) == 1:
        return graphs[0].detach()
    first = graphs[0]
    for graph in graphs[1:]:
        if graph.labels.keys() != first.labels.keys():
            both = f"{sorted(first.labels)} and {sorted(graph.labels)}"
            raise UserError(f"graphs with different labels in one batch: {both}")
        if graph.positions.dtype != first.positions.dtype:
            raise UserError(
                f"graphs of different dtype in one batch: {first.positions.dtype} and {graph.positions.dtype}"
            )
    atoms = np.cumsum([0, *(g.numbers.shape[0] for g in graphs)]).tolist()
    edges = np.cumsum([0, *(g.n_edges for g in graphs)]).tolist()
    members = np.cumsum([0, *(g.n_graphs for g in graphs)]).tolist()

    def cat(values: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        return torch.cat(values, dim=dim)

    def optional(name: str) -> torch.Tensor | None:
        values = [getattr(g, name) for g in graphs]
        return None if any(v is None for v in values) else cat(values)

    groups = None
    if any(g.groups for g in graphs):
        groups = [name for g in graphs for name in (g.groups or [""] * g.n_graphs)]
    row_ptr = [g.row_ptr[:-1] + start for g, start in zip(graphs, edges, strict=False)]
    return Graph(
        numbers=cat([g.numbers for g in graphs]),
        positions=cat([g.positions for g in graphs]),
        cell=cat([g.cell for g in graphs]),
        pbc=cat([g.pbc for g in graphs]),
        batch=cat([g.batch + start for g, start in zip(graphs, members, strict=False)]),
        n_atoms=cat([g.n_atoms for g in graphs]),
        edge_index=cat([g.edge_index + start for g, start in zip(graphs, atoms, strict=False)], dim=1),
        shifts=cat([g.shifts for g in graphs]),
        row_ptr=cat([*row_ptr, row_ptr[0].new_tensor([edges[-1]])]),
        charge=optional("charge"),
        spin=optional("spin"),
        labels={key: cat([g.labels[key] for g in graphs]) for key in first.labels},
        masks={key: cat([g.masks[key] for g in graphs]) for key in first.masks},
        groups=groups,
    )
