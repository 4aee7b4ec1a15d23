"""The batch: conventions of edges, labels with masks, collation, moves between dtypes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from tesseral.datasets.errors import UserError
from tesseral.datasets.graph import Graph, collate, graph_from_structure
from tesseral.datasets.structure import Structure

CUTOFF = 4.0
LABELS = ("energy", "forces", "stress")


def water(**changes) -> Structure:
    atoms = molecule("H2O")
    labels = {"energy": np.array(-14.2), "forces": np.arange(9.0).reshape(3, 3)}
    return Structure(atoms.numbers, atoms.positions, labels=labels, **changes)


def copper(**changes) -> Structure:
    atoms = bulk("Cu")
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, **changes)


def empty() -> Structure:
    return Structure(np.zeros(0, dtype=int), np.zeros((0, 3)))


def test_edge_vectors_follow_the_convention_in_a_batch_of_different_cells():
    frames = (water(), copper(), empty(), copper())
    graphs = [graph_from_structure(s, CUTOFF, dtype=torch.float64) for s in frames]
    batch = collate(graphs)
    assert (batch.n_graphs, batch.n_atoms.tolist()) == (4, [3, 1, 0, 1])
    assert batch.n_edges == sum(g.n_edges for g in graphs)
    separate = torch.cat([g.edge_vectors() for g in graphs])
    torch.testing.assert_close(batch.edge_vectors(), separate, rtol=0, atol=1e-12)
    source, target = batch.edge_index
    for e in range(batch.n_edges):
        cell = batch.cell[batch.batch[target[e]]]
        expected = batch.positions[source[e]] + batch.shifts[e] @ cell - batch.positions[target[e]]
        torch.testing.assert_close(batch.edge_vectors()[e], expected)
    assert (batch.edge_vectors().norm(dim=1) < CUTOFF).all()


def test_row_pointers_delimit_the_edges_of_each_target():
    batch = collate([graph_from_structure(s, CUTOFF) for s in (water(), empty(), copper(), water())])
    for atom in range(len(batch.numbers)):
        rows = slice(int(batch.row_ptr[atom]), int(batch.row_ptr[atom + 1]))
        assert (batch.edge_index[1, rows] == atom).all()
    assert batch.row_ptr[0] == 0 and batch.row_ptr[-1] == batch.n_edges


def test_edges_never_cross_structures():
    batch = collate([graph_from_structure(water(), CUTOFF) for _ in range(3)])
    assert torch.equal(batch.batch[batch.edge_index[0]], batch.batch[batch.edge_index[1]])


def test_missing_labels_are_masked_and_never_invented():
    bare = water()
    bare.labels.clear()
    batch = collate([graph_from_structure(s, CUTOFF, labels=LABELS) for s in (water(), bare)])
    assert batch.masks["energy"].tolist() == [True, False]
    assert batch.labels["energy"].dtype == torch.float64 and batch.labels["energy"].tolist() == [-14.2, 0.0]
    assert batch.labels["forces"][:3].flatten().tolist() == list(range(9))
    assert not batch.labels["forces"][3:].any()
    assert batch.labels["stress"].shape == (2, 6) and not batch.masks["stress"].any()


def test_stress_of_a_slab_is_no_label_whatever_the_file_says():
    slab = copper(labels={"stress": np.ones(6)})
    assert graph_from_structure(slab, CUTOFF, labels=["stress"]).masks["stress"].all()
    slab.pbc[2] = False
    graph = graph_from_structure(slab, CUTOFF, labels=["stress"])
    assert not graph.masks["stress"].any() and not graph.labels["stress"].any()


def test_wrong_labels_are_clear_errors():
    wrong = water()
    wrong.labels["forces"] = np.zeros((2, 3))
    with pytest.raises(UserError, match=r"'forces' of H2O has shape \(2, 3\), expected \(3, 3\)"):
        graph_from_structure(wrong, CUTOFF, labels=["forces"])
    with pytest.raises(UserError, match="unknown label 'force'; known labels: energy"):
        graph_from_structure(water(), CUTOFF, labels=["force"])


def test_charge_and_spin_have_no_silent_default():
    charged, plain = water(charge=1.0, spin=2), water()
    batch = collate([graph_from_structure(charged, CUTOFF)] * 2)
    assert batch.require("charge").tolist() == [1.0, 1.0] and batch.require("spin").tolist() == [2, 2]
    mixed = collate([graph_from_structure(charged, CUTOFF), graph_from_structure(plain, CUTOFF)])
    with pytest.raises(UserError, match="takes the spin of each structure as input, and at least one"):
        mixed.require("spin")


def test_dtype_change_keeps_energies_in_float64_and_integers_integer():
    graph = graph_from_structure(water(charge=0.0, spin=1), CUTOFF, labels=LABELS).to(dtype=torch.float64)
    for tensor in (graph.positions, graph.cell, graph.shifts, graph.labels["forces"], graph.charge):
        assert tensor.dtype == torch.float64
    narrow = graph.to("cpu", torch.float32)
    assert narrow.labels["energy"].dtype == torch.float64 and narrow.positions.dtype == torch.float32
    assert narrow.edge_index.dtype == torch.int64 and narrow.masks["energy"].dtype == torch.bool


def test_graphs_that_do_not_fit_together_are_refused():
    a, b = graph_from_structure(water(), CUTOFF, labels=["energy"]), graph_from_structure(water(), CUTOFF)
    with pytest.raises(UserError, match="different labels in one batch"):
        collate([a, b])
    with pytest.raises(UserError, match="different dtype in one batch"):
        collate([b, b.to(dtype=torch.float64)])
    with pytest.raises(UserError, match="empty list"):
        collate([])


def test_config_types_follow_their_structures():
    grouped, plain = water(info={"config_type": "md"}), water()
    assert collate([graph_from_structure(s, CUTOFF) for s in (plain, grouped)]).groups == ["", "md"]
    assert collate([graph_from_structure(plain, CUTOFF)] * 2).groups is None


def test_given_neighbours_are_used_and_bytes_are_counted():
    none = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.int64))
    graph = graph_from_structure(water(), CUTOFF, neighbors=none)
    assert isinstance(graph, Graph) and graph.n_edges == 0 and graph.row_ptr.tolist() == [0, 0, 0, 0]
    bound = graph_from_structure(water(), CUTOFF)
    assert bound.nbytes - graph.nbytes == bound.n_edges * (2 * 8 + 3 * 4)


def test_graphs_need_numpy_and_torch_alone():
    code = """
import sys
for name in ("vesin", "ase", "scipy", "h5py", "rdkit", "pymatgen", "lightning", "matplotlib"):
    sys.modules[name] = None  # any import of it fails
import subprocess
import sys

import numpy as np
from tesseral.datasets.graph import collate, graph_from_structure
from tesseral.datasets.structure import Structure
crystal = Structure([29], np.zeros((1, 3)), 1.8 * (1 - np.eye(3)), np.ones(3, dtype=bool))
print(collate([graph_from_structure(crystal, 5.0)] * 2).n_edges)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["84"], result.stderr  # two times the shells 12 + 6 + 24 of fcc
