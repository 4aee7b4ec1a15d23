"""The data section: split, reference energies, labels, provenance."""

import json

import numpy as np
import pytest

from tesseral.datasets.errors import UserError
from tesseral.datasets.source import MemorySource
from tesseral.datasets.store_writer import write_store
from tesseral.datasets.structure import Structure
from tesseral.training.config import ConfigError
from tesseral.training.data import (
    DataOptions,
    isolated_energies,
    open_data,
    provenance,
    shifted_references,
    split,
)


def atom(z, energy):
    return Structure([z], np.zeros((1, 3)), labels={"energy": np.array(energy)})


def test_split_is_a_partition_that_depends_on_the_seed_alone(toy):
    source = MemorySource([*toy.frames(10), atom(1, -13.0), atom(8, -430.0)])
    train, validation = split(source, 0.3, seed=4)
    again = split(source, 0.3, seed=4)
    assert sorted([*train.indices, *validation.indices]) == list(range(12))
    assert len(validation) == 3
    assert np.array_equal(validation.indices, again[1].indices)
    assert not np.array_equal(validation.indices, split(source, 0.3, seed=5)[1].indices)
    assert {10, 11} <= set(train.indices)  # isolated atoms stay where the statistics look for them


def test_split_of_too_few_frames(toy):
    with pytest.raises(ConfigError, match="leaves no training frame"):
        split(MemorySource(toy.frames(1)), 0.5, seed=0)


def test_files_are_concatenated_and_validation_may_be_files(toy, tmp_path):
    a, b = toy.write(tmp_path / "a.h5", 4), toy.write(tmp_path / "b.h5", 6, seed=1)
    data = open_data(DataOptions(train=[str(a), str(b)], val=str(b), test=[str(a)]), seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 6, 4)
    record = provenance(DataOptions(train=[str(a), str(b)], val=str(b)), data)
    assert [file["name"] for file in record["files"]["train"]] == ["a.h5", "b.h5"]
    assert record["frames"] == {"train": 10, "val": 6, "test": 4}
    assert str(tmp_path) not in json.dumps(record)


def test_no_validation_and_no_training_file(toy_store):
    assert open_data(DataOptions(train=str(toy_store), val=0.0), seed=0).validation is None
    with pytest.raises(ConfigError, match=r"data\.train is missing"):
        open_data(DataOptions(), seed=0)


def test_reference_energies_by_symbol_or_from_a_file(tmp_path):
    assert isolated_energies(DataOptions(reference_energies={"H": -13.6})) == {1: -13.6}
    path = tmp_path / "atoms.h5"
    write_store(path, [atom(1, -13.0), atom(8, -430.0)])
    assert isolated_energies(DataOptions(reference_energies=str(path))) == {1: -13.0, 8: -430.0}
    with pytest.raises(ConfigError, match="Xx is no element symbol"):
        isolated_energies(DataOptions(reference_energies={"Xx": 1.0}))


def test_a_reference_file_without_atoms(toy_store):
    with pytest.raises(ConfigError, match="no one-atom frame with an energy"):
        isolated_energies(DataOptions(reference_energies=str(toy_store)))


def test_shifted_references_take_up_the_binding_energy():
    rng, frames = np.random.default_rng(0), [atom(1, -13.0), atom(8, -430.0)]
    for n_h, n_o in ((2, 1), (2, 2), (4, 1)):
        numbers = [1] * n_h + [8] * n_o
        energy = n_h * (-13.0 - 2.5) + n_o * (-430.0 - 4.0)
        frames.append(Structure(numbers, rng.normal(size=(len(numbers), 3)), labels={"energy": np.array(energy)}))
    references = {1: -13.0, 8: -430.0}
    assert shifted_references(MemorySource(frames), references) == pytest.approx({1: -15.5, 8: -434.0})
    one_composition = shifted_references(MemorySource(frames[:3]), references)
    assert one_composition == pytest.approx({1: -16.0, 8: -433.0})  # 3 eV per atom, the same for both elements


def test_unknown_names_of_labels_and_units(toy_store):
    with pytest.raises(ConfigError, match=r"unknown key 'keys\.force'; did you mean 'forces'"):
        open_data(DataOptions(train=str(toy_store), keys={"force": "f"}), seed=0)
    with pytest.raises(UserError, match="furlong"):
        open_data(DataOptions(train=str(toy_store), units={"length": "furlong"}), seed=0)


def test_a_label_that_no_frame_has_names_the_labels_present(toy, toy_config, tmp_path):
    from tesseral.potentials.fit import train

    frames = toy.frames(6)
    for frame in frames:
        del frame.labels["stress" if "stress" in frame.labels else "forces"]
        frame.labels.pop("forces", None)
    write_store(tmp_path / "bare.h5", frames)
    with pytest.raises(UserError, match=r"no frame has the label 'forces'; labels present: energy"):
        train(toy_config("bare", f"data.train={tmp_path / 'bare.h5'}"))
