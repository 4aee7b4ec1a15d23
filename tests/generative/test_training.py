"""Molecules of any file in the form in which they are learned, and a training from a configuration to a checkpoint."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

import tesseral
from tesseral.datasets.errors import DataError
from tesseral.datasets.structure import Structure
from tesseral.datasets.write import write
from tesseral.generative.data import (
    MoleculeOptions,
    embedded,
    prepared,
    read_molecules,
    smiles_rows,
    with_bonds_of,
)
from tesseral.generative.fit import GeneratorTraining, open_molecules, train
from tesseral.generative.sampler import SamplerOptions
from tesseral.training.config import ConfigError, from_dict


def test_hydrogens_and_kekule_form():
    pyridine = embedded("c1ccncc1")
    assert (pyridine.bonds[:, 2] == 4).sum() == 6
    kept = prepared(pyridine, MoleculeOptions())
    assert kept.n_atoms == 11
    assert sorted(kept.bonds[:, 2].tolist()) == [1] * 8 + [2] * 3
    bare = prepared(pyridine, MoleculeOptions(hydrogens="remove"))
    assert bare.n_atoms == 6
    assert set(bare.arrays) <= {"formal_charges"}
    np.testing.assert_array_equal(bare.positions, pyridine.positions[:6])
    again = prepared(bare, MoleculeOptions(hydrogens="add", aromatic=True))
    assert again.n_atoms == 11
    assert (again.bonds[:, 2] == 4).sum() == 6


def test_extra_variables_are_those_of_rdkit_and_are_learned(tmp_path):
    extra = ["ring", "aromatic", "hybridisation"]
    furan = prepared(embedded("Cc1ccoc1"), MoleculeOptions(hydrogens="remove", extra=extra))
    assert furan.arrays["ring"].tolist() == [0, 1, 1, 1, 1, 1]
    assert furan.arrays["aromatic"].tolist() == [0, 1, 1, 1, 1, 1]
    assert len(set(furan.arrays["hybridisation"].tolist())) == 2  # sp3, sp2
    with pytest.raises(ConfigError, match="'rings'"):
        MoleculeOptions(extra=["rings"])
    write(tmp_path / "set.sdf", [embedded(s) for s in ("Cc1ccoc1", "CC#N", "CCO")])
    config = configuration(tmp_path, data={"val": 0.0, "molecules": {"hydrogens": "remove", "extra": extra}})
    train(config)
    generator = tesseral.load(tmp_path / "run" / "model.safetensors")
    assert list(generator.vocabulary.atoms) == ["element", "charge", *extra]
    assert generator.vocabulary.atoms["hybridisation"].values == (2, 3, 4)  # SP, SP2, SP3 in RDKit
    drawn = generator.sample(1, options=SamplerOptions(calls=2))[0]
    assert set(extra) <= set(drawn.arrays)


def test_smiles_file_with_heading_and_bad_lines(tmp_path):
    path = tmp_path / "set.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("smiles,name\nCCO,ethanol\nnonsense,x\n[Na+].[Cl-],salt\nC[N+](=O)[O-],nitromethane\n")
    molecules, left_out = read_molecules(path)
    assert [m.formula for m in molecules] == ["C2H6O", "CH3NO2"]
    assert sum(left_out.values()) == 2
    assert any("no SMILES" in reason for reason in left_out)
    assert molecules[1].arrays["formal_charges"].tolist()[:4] == [0, 1, 0, -1]
    repeated, _ = read_molecules(path)
    np.testing.assert_array_equal(repeated[0].positions, molecules[0].positions)
    assert len(read_molecules(path, MoleculeOptions(max_molecules=1))[0]) == 1


def test_columns_of_a_smiles_file_are_properties(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("id,smiles,gap,note\n1,CCO,7.5,a b\n2,CC#N,8.25,\n3,CCN,,x\n4,CCF,wide,x\n")
    assert [row[0] for row in smiles_rows(path)] == ["CCO", "CC#N", "CCN", "CCF"]
    assert next(iter(smiles_rows(path)))[1] == {"id": "1", "gap": "7.5", "note": "a b"}
    molecules, left_out = read_molecules(path, properties=["gap"])
    assert [m.info for m in molecules] == [{"gap": 7.5}, {"gap": 8.25}]
    assert sum(left_out.values()) == 2
    with pytest.raises(DataError, match=r"no property 'gaps' \(.*gap.*\)"):
        read_molecules(path, properties=["gaps"])
    path.write_text("CCO |c:1,2| ethanol\nCC#N\n")
    assert list(smiles_rows(path)) == [("CCO", {}), ("CC#N", {})]


def test_nothing_usable_says_why(tmp_path):
    path = tmp_path / "geometry.xyz"
    write(path, Structure([8, 1, 1], np.eye(3)))
    with pytest.raises(DataError, match="no bonds"):
        read_molecules(path)


def test_bonds_of_a_smiles_on_a_bare_geometry(shared_data):
    ethanol = embedded("CCO")
    bare = Structure(ethanol.numbers, ethanol.positions)
    assert with_bonds_of(bare, "CCO").bonds.tolist() == ethanol.bonds.tolist()
    with pytest.raises(DataError, match="order"):
        with_bonds_of(bare, "OCC")
    with pytest.raises(DataError, match="far apart"):
        with_bonds_of(Structure(bare.numbers, 2 * bare.positions), "CCO")


def test_geometries_of_qm9_take_the_bonds_of_its_smiles(shared_data):
    import csv

    import h5py

    with gzip.open(shared_data("qm9/qm9_smiles.csv.gz"), "rt") as file:
        smiles = {int(row["gdb_index"]): row["smiles"] for row in csv.DictReader(file)}
    good = 0
    with h5py.File(shared_data("qm9/qm9_train.h5")) as file:
        chosen = np.linspace(0, len(file["gdb_index"]) - 1, 200).astype(int)
        for k in chosen:
            begin, end = file["offsets"][k : k + 2]
            frame = Structure(file["numbers"][begin:end], file["positions"][begin:end])
            try:
                good += with_bonds_of(frame, smiles[int(file["gdb_index"][k])]).n_atoms > 0
            except DataError:
                continue
    assert good >= 190


def configuration(tmp_path, **changes):
    data = {
        "run": str(tmp_path / "run"),
        "model": {"config": {"preset": "cpu", "network": {"scalars": 16, "layers": 2}, "diffusion": {"steps": 10}}},
        "data": {"train": str(tmp_path / "set.sdf"), "val": 0.2, "batch_size": 8},
        "training": {"epochs": 2, "threads": 1, "tensorboard": False, "save_every": 1},
    }
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value}
    return from_dict(GeneratorTraining, data)


def test_a_set_with_an_unusual_element_trains_and_generates(tmp_path):
    smiles = ("C[Se]C", "CC[SeH]", "C[Si](C)C", "CCB(O)O", "CC#N") * 4
    write(tmp_path / "set.sdf", [embedded(s) for s in smiles])
    result = train(configuration(tmp_path))
    assert result["left_out"] == {}
    assert 0 < result["metrics"]["val_loss"] < 100
    generator = tesseral.load(tmp_path / "run" / "model.safetensors")
    assert 34 in generator.vocabulary.atoms["element"].values
    assert generator.card["provenance"]["data"]["n_molecules"] == 16
    assert len(generator.sample(3, options=SamplerOptions(calls=2))) == 3
    with pytest.raises(ConfigError, match="--resume"):
        train(configuration(tmp_path))
    resumed = train(configuration(tmp_path, training={"epochs": 3}), resume=True)
    assert resumed["metrics"]["epoch"] == 3
    with pytest.raises(ConfigError, match=r"data\.batch_size"):
        train(configuration(tmp_path, data={"batch_size": 4}), resume=True)


def test_training_goes_on_from_averaged_weights_in_small_files(tmp_path):
    """Three runs, each from the bf16 shards of the last one: errors go on falling, other noise in each."""
    write(tmp_path / "set.sdf", [embedded(s) for s in ("CCO", "CC#N", "CCN", "CC=O") * 4])
    long = {"epochs": 15, "shard_mb": 0.03, "ema": 0.9, "save_every": 1000}
    rate = {"optimizer": {"lr": 3e-3}, "schedule": {"name": "constant"}}
    config, losses, seeds = configuration(tmp_path, training=long, **rate), [], []
    for k in range(3):
        changes = {"run": str(tmp_path / f"part-{k}")}
        if k:
            changes["model"] = {"config": {}, "init": str(tmp_path / f"part-{k - 1}" / "weights")}
        losses.append(train(from_dict(GeneratorTraining, changes, base=config))["metrics"]["val_loss"])
        folder = tmp_path / f"part-{k}" / "weights"
        files = list(folder.iterdir())
        assert len(files) > 1
        assert max(file.stat().st_size for file in files) <= 30_000
        part = tesseral.load(folder)
        seeds.append(part.card["provenance"]["steps_before"])
        assert part.dtype == torch.float32
    assert seeds == [0, 30, 60]
    assert losses[2] < losses[1] < losses[0]
    whole = tesseral.load(tmp_path / "part-2" / "model.safetensors")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(part.state_dict()[name], tensor, rtol=2**-8, atol=0)


def test_fine_tuning_takes_classes_from_the_start_and_frequencies_from_the_data(tmp_path):
    write(tmp_path / "set.sdf", [embedded(s) for s in ("CCO", "CC#N", "CCN") * 3])
    train(configuration(tmp_path))
    first = tesseral.load(tmp_path / "run" / "model.safetensors")
    write(tmp_path / "few.sdf", [embedded("CC#N")] * 6)
    start = {"config": {}, "init": str(tmp_path / "run" / "model.safetensors")}
    more = configuration(
        tmp_path,
        data={"train": str(tmp_path / "few.sdf")},
        model=start,
    )
    tuned = from_dict(GeneratorTraining, {"run": str(tmp_path / "tuned")}, base=more)
    train(tuned)
    second = tesseral.load(tmp_path / "tuned" / "model.safetensors")
    assert second.vocabulary.atoms["element"].values == first.vocabulary.atoms["element"].values
    assert second.vocabulary.sizes == {6: 6}
    assert second.vocabulary.atoms["element"].frequencies[-1] < 1e-4  # no oxygen any more
    write(tmp_path / "few.sdf", [embedded("CCF")] * 6, overwrite=True)
    with pytest.raises(DataError, match=r"element 9 .*vocabulary"):
        train(from_dict(GeneratorTraining, {"run": str(tmp_path / "third")}, base=tuned))


def test_start_weights_learn_to_see_their_estimate(tmp_path):
    write(tmp_path / "set.sdf", [embedded(s) for s in ("CCO", "CC#N", "CCN", "CC=O") * 4])
    train(configuration(tmp_path, training={"epochs": 15}))
    init = str(tmp_path / "run" / "model.safetensors")
    tuned = {"run": str(tmp_path / "tuned"), "model": {"config": {"self_conditioning": True}, "init": init}}
    config = from_dict(GeneratorTraining, tuned, base=configuration(tmp_path))
    train(config)
    model = tesseral.load(tmp_path / "tuned" / "model.safetensors")
    assert model.config.self_conditioning
    assert len(model.sample(2, seed=1)) == 2
    for name in ("atoms_in", "bonds_in"):
        before = getattr(tesseral.load(init).network, name).weight
        after = getattr(model.network, name).weight
        assert after[:, before.shape[1] :].abs().max() > 0
    for other in ({"preset": "cpu"}, {"self_conditioning": False}):
        wrong = replace(config, model=replace(config.model, config=other), run=str(tmp_path / "wrong"))
        with pytest.raises(ConfigError, match=r"can only be \{self_conditioning: true\}"):
            train(wrong)


def test_data_options_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train is missing"):
        open_molecules(GeneratorTraining())
    write(tmp_path / "set.sdf", [embedded("CC#N")])
    with pytest.raises(ConfigError, match="leaves none"):
        open_molecules(configuration(tmp_path))
