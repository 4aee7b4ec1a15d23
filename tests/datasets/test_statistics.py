"""Reference energies from atoms, users and least squares; scales; errors that name the keys present."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from tesseral.datasets.errors import UserError
from tesseral.datasets.read import open_source
from tesseral.datasets.statistics import compute_statistics
from tesseral.datasets.structure import Structure

TRUE = {1: -13.6, 6: -1030.0, 8: -2043.0}


def molecules(formulas, noise: float = 0.0, seed: int = 0) -> list[Structure]:
    """Random arrangements whose energies are sums of TRUE plus `noise` per atom."""
    rng = np.random.default_rng(seed)
    frames = []
    for formula in formulas:
        numbers = np.array([z for z, count in formula.items() for _ in range(count)])
        n = len(numbers)
        energy = sum(TRUE[z] for z in numbers.tolist()) + n * noise * rng.normal()
        labels = {"energy": np.array(energy), "forces": rng.normal(scale=2.0, size=(n, 3))}
        frames.append(Structure(numbers, rng.normal(size=(n, 3)), labels=labels))
    return frames


VARIED = [{1: 4, 6: 1}, {1: 2, 8: 1}, {1: 6, 6: 2, 8: 1}, {1: 6, 6: 6}, {6: 1, 8: 2}] * 40


def test_least_squares_finds_the_references_and_the_spread():
    found = compute_statistics(molecules(VARIED, noise=0.05), 3.0)
    assert found.elements == [1, 6, 8] and found.n_frames == 200
    assert found.reference_energies == pytest.approx(TRUE, abs=0.05)
    assert found.energy_std_per_atom == pytest.approx(0.05, rel=0.15)
    assert found.force_rms == pytest.approx(2.0, rel=0.05)
    assert "least squares" in found.notes[0]


def test_spread_is_that_of_the_residuals_frame_by_frame():
    frames = molecules(VARIED, noise=0.3)
    found = compute_statistics(frames, 3.0)
    residuals = []
    for s in frames:
        reference = sum(found.reference_energies[z] for z in s.numbers.tolist())
        residuals.append((float(s.labels["energy"]) - reference) / s.n_atoms)
    assert found.energy_std_per_atom == pytest.approx(np.std(residuals), rel=1e-6)


def test_isolated_atoms_come_first_and_the_user_before_them():
    atoms = molecules([{1: 1}, {6: 1}])
    found = compute_statistics(molecules(VARIED, noise=0.05) + atoms, 3.0, isolated={6: -1029.5})
    assert found.reference_energies[1] == TRUE[1]
    assert found.reference_energies[6] == -1029.5
    assert found.reference_energies[8] == pytest.approx(TRUE[8], abs=0.5)  # fitted, the others fixed


def test_one_atom_cells_of_a_crystal_are_not_isolated_atoms():
    atoms = bulk("Cu")
    frames = [Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, labels={"energy": -3.7})]
    found = compute_statistics(frames, 4.0)
    assert found.reference_energies == pytest.approx({29: -3.7})
    assert found.mean_neighbors == 18


def test_dependent_compositions_give_the_smallest_references_and_a_note():
    found = compute_statistics(molecules([{1: 4, 6: 1}, {1: 8, 6: 2}]), 3.0)
    total = 4 * found.reference_energies[1] + found.reference_energies[6]
    assert total == pytest.approx(4 * TRUE[1] + TRUE[6])
    assert found.reference_energies[1] == pytest.approx(4 * found.reference_energies[6])  # minimum norm
    assert "fix only 1 of the 2 reference energies (H, C)" in found.notes[0]


def test_different_isolated_atoms_of_one_element_are_noted():
    atoms = molecules([{8: 1}, {8: 1}])
    atoms[1].labels["energy"] = np.array(-2041.0)
    found = compute_statistics(atoms + molecules(VARIED), 3.0)
    assert found.reference_energies[8] == -2043.0
    assert any("2 isolated O atoms differ by 2.000 eV" in note for note in found.notes)


def test_missing_labels_name_the_keys_present():
    frames = molecules(VARIED)
    for frame in frames:
        frame.info["E_total"] = 1.0
        del frame.labels["energy"]
    with pytest.raises(UserError, match="no frame has the label 'energy'; labels present: forces; other keys: E_t"):
        compute_statistics(frames, 3.0)
    with pytest.raises(UserError, match="no frame has the label 'stress'"):
        compute_statistics(molecules(VARIED), 3.0, required=("energy", "stress"))
    with pytest.raises(UserError, match="no frames"):
        compute_statistics([], 3.0)


def test_some_missing_labels_are_counted_not_zeroed():
    frames = molecules(VARIED)
    for frame in frames[::2]:
        frame.labels.clear()
    found = compute_statistics(frames, 3.0)
    assert found.label_counts == {"energy": 100, "forces": 100}
    assert found.force_rms == pytest.approx(2.0, rel=0.1)


def test_a_label_that_is_not_finite_names_its_frame():
    frames = molecules(VARIED)
    frames[7].labels["forces"][0, 1] = np.nan
    with pytest.raises(UserError, match="frame 7: the label 'forces' is not finite"):
        compute_statistics(frames, 3.0)


def test_numbers_of_3bpa(shared_data):
    files = [shared_data("3bpa/isolated_atoms.extxyz.gz"), shared_data("3bpa/train_300K.extxyz.gz")]
    found = compute_statistics(open_source(files), 5.0)
    assert found.force_rms == pytest.approx(0.948, abs=1e-3)  # from the data set's own description
    assert found.reference_energies[1] == pytest.approx(-13.587, abs=1e-3)
    assert found.energy_std_per_atom * 27 == pytest.approx(0.165, abs=1e-3)
    assert found.notes == []
