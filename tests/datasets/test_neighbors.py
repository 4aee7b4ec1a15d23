"""Neighbour lists against ASE's own list on random triclinic, partial-pbc, tiny-cell and no-atom cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseral.datasets.errors import UserError
from tesseral.datasets.neighbors import SkinList, neighbor_list, torch_neighbor_list

CUTOFF = 3.7


@st.composite
def systems(draw):
    """Atoms in and far outside of a triclinic cell that may be much smaller than the cutoff."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_atoms = draw(st.integers(0, 9))
    pbc = np.array(draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    lengths = rng.uniform(1.2, 9.0, 3)
    cell = np.diag(lengths) + rng.uniform(-0.5, 0.5, (3, 3)) * lengths[:, None]
    if np.abs(np.linalg.det(cell)) < 0.3 * lengths.prod():
        cell = np.diag(lengths)
    if draw(st.booleans()):
        cell[~pbc] = 0.0
    positions = rng.normal(scale=draw(st.sampled_from([1.5, 12.0])), size=(n_atoms, 3))
    return positions, cell, pbc


def as_rows(edges):
    source, target, shifts = edges
    return np.column_stack([target, source, shifts])


def ase_rows(positions, cell, pbc, cutoff):
    if len(positions) == 0:
        return np.zeros((0, 5), dtype=int)
    box = cell.copy()
    # ASE wants a full cell also along free axes.
    box[~pbc] = np.linalg.svd(cell[pbc])[2][int(pbc.sum()) :] if pbc.any() else np.eye(3)
    target, source, shifts = primitive_neighbor_list("ijS", pbc, box, positions, cutoff)
    rows = np.column_stack([target, source, shifts])
    return rows[np.lexsort(rows.T[::-1])]


@settings(max_examples=120, deadline=None)
@given(systems())
def test_agrees_with_ase_in_set_and_order(system):
    positions, cell, pbc = system
    expected = ase_rows(positions, cell, pbc, CUTOFF)
    for backend in ("vesin", "torch"):
        rows = as_rows(neighbor_list(positions, cell, pbc, CUTOFF, backend=backend))
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(rows, expected, err_msg=backend)


@settings(max_examples=40, deadline=None)
@given(systems())
def test_vectors_are_shorter_than_the_cutoff_and_come_in_both_directions(system):
    positions, cell, pbc = system
    source, target, shifts = neighbor_list(positions, cell, pbc, CUTOFF)
    vectors = positions[source] + shifts @ cell - positions[target]
    assert (np.linalg.norm(vectors, axis=1) < CUTOFF + 1e-9).all()
    assert not shifts[:, ~pbc].any()
    forward = set(map(tuple, np.column_stack([source, target, shifts])))
    assert forward == set(map(tuple, np.column_stack([target, source, -shifts])))


@settings(max_examples=40, deadline=None)
@given(systems(), st.integers(0, 2**32 - 1))
def test_skin_list_never_changes_the_result(system, seed):
    positions, cell, pbc = system
    rng = np.random.default_rng(seed)
    skin_list = SkinList(CUTOFF, skin=0.6)
    for step in range(6):
        if step == 4:
            cell = cell * 1.02
        got = as_rows(skin_list.update(positions, cell, pbc))
        np.testing.assert_array_equal(got, as_rows(neighbor_list(positions, cell, pbc, CUTOFF)))
        positions = positions + rng.uniform(-0.1, 0.1, positions.shape)


def test_skin_list_is_kept_for_small_and_rebuilt_for_large_moves():
    atoms = bulk("Cu", cubic=True)
    skin_list = SkinList(4.0, skin=0.4)
    positions, cell, pbc = atoms.positions.copy(), atoms.cell.array, atoms.pbc
    skin_list.update(positions, cell, pbc)
    positions[0, 0] += 0.19
    skin_list.update(positions, cell, pbc)
    assert skin_list.n_builds == 1
    positions[0, 0] += 0.02
    skin_list.update(positions, cell, pbc)
    assert skin_list.n_builds == 2
    skin_list.update(positions, cell, np.array([True, True, False]))
    skin_list.update(positions[:3], cell, pbc)
    skin_list.update(positions[:3], 1.001 * cell, pbc)
    assert skin_list.n_builds == 5


def test_primitive_cell_smaller_than_the_cutoff_has_the_shells_of_fcc():
    atoms = bulk("Cu", a=3.6)  # one atom per cell, heights about 2.1 Å
    source, target, shifts = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 5.0)
    assert len(source) == 12 + 6 + 24  # shells at a/sqrt2 = 2.55, a = 3.6 and 4.41 Å
    assert not source.any() and not target.any() and shifts.any(axis=1).all()


@pytest.mark.parametrize("backend", ["vesin", "torch"])
def test_far_apart_atoms_cost_no_memory(backend):
    positions = np.array([[0.0, 0, 0], [1e6, 0, 0], [1e6, 1.0, 0], [0, 0, -1e6]])
    source, target, _ = neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, bool), 3.0, backend=backend)
    assert source.tolist() == [2, 1] and target.tolist() == [1, 2]


def test_torch_list_keeps_the_precision_and_device_of_its_input():
    atoms = bulk("Si", cubic=True)
    edges = torch_neighbor_list(
        torch.tensor(atoms.positions, dtype=torch.float32),
        torch.tensor(atoms.cell.array, dtype=torch.float32),
        torch.tensor(atoms.pbc),
        4.2,
    )
    rows = as_rows(neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.2))
    np.testing.assert_array_equal(as_rows(tuple(e.numpy() for e in edges)), rows)


def test_impossible_geometry_is_a_clear_error():
    cell, pbc = np.diag([3.0, 3.0, 0.0]), np.array([True, True, True])
    with pytest.raises(UserError, match="flat or zero along a periodic axis"):
        neighbor_list(np.zeros((1, 3)), cell, pbc, 3.0)
    with pytest.raises(UserError, match="position of atom 1 is not finite"):
        neighbor_list(np.array([[0.0, 0, 0], [np.nan, 0, 0]]), np.eye(3), np.zeros(3, bool), 3.0)
    with pytest.raises(UserError, match="cutoff must be positive"):
        neighbor_list(np.zeros((1, 3)), np.eye(3), np.zeros(3, bool), 0.0)
