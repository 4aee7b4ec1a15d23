"""Properties that steer generation: their statistics, their way into the network, and whether they steer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tesseral
from tesseral.datasets.errors import DataError, UserError
from tesseral.datasets.structure import Structure
from tesseral.datasets.write import write
from tesseral.generative import save
from tesseral.generative.conditions import Conditions, property_of
from tesseral.generative.diffusion import Diffusion, DiffusionConfig
from tesseral.generative.eqgat import Eqgat, EqgatConfig, Prediction
from tesseral.generative.fit import GeneratorTraining, train
from tesseral.generative.layout import Layout
from tesseral.generative.loader import encode_all
from tesseral.generative.model import EqgatDiff
from tesseral.generative.molecules import collate
from tesseral.generative.sampler import SamplerOptions, sample
from tesseral.generative.task import GeneratorTask
from tesseral.generative.vocabulary import Vocabulary
from tesseral.training.config import ConfigError, from_dict
from tesseral.training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from tesseral.training.task import Trainee


def chains(sizes, gaps, masses=None):
    """Carbon chains with properties."""
    masses = gaps if masses is None else masses
    return [
        Structure(
            np.full(n, 6),
            np.arange(3 * n).reshape(n, 3),
            bonds=[[k, k + 1, 1] for k in range(n - 1)],
            info={"gap": gap, "mass": mass},
        )
        for n, gap, mass in zip(sizes, gaps, masses, strict=True)
    ]


def test_scale_is_mean_and_mean_absolute_deviation():
    found = Conditions.from_structures(chains([2, 2, 3, 3], [1.0, 2.0, 4.0, 9.0]), ["gap"])
    assert found.means == (4.0,)
    assert found.spreads == (2.5,)  # (3 + 2 + 0 + 5) / 4
    assert found.limits == ((1.0, 9.0),)
    np.testing.assert_allclose(found.standardised(np.array([[9.0]])), [[2.0]])
    back = Conditions.from_dict(json.loads(json.dumps(found.to_dict())))
    assert (back.names, back.means, back.spreads, back.limits) == (("gap",), (4.0,), (2.5,), ((1.0, 9.0),))
    assert {n: rows.tolist() for n, rows in back.rows.items()} == {2: [[1.0], [2.0]], 3: [[4.0], [9.0]]}


def test_values_are_drawn_as_the_data_have_them_for_that_size():
    rng = np.random.default_rng(0)
    sizes = rng.choice([3, 7], size=5000)
    gaps = np.where(sizes == 3, rng.normal(1.0, 0.1, 5000), rng.normal(5.0, 0.5, 5000))
    found = Conditions.from_structures(chains(sizes, gaps, -2 * gaps), ["gap", "mass"])
    assert {n: len(rows) for n, rows in found.rows.items()} == {3: 1000, 7: 1000}
    uniform = (np.arange(2000) + 0.5) / 2000
    drawn = found.draw(np.full(2000, 7), uniform, {})
    assert drawn[:, 0].mean() == pytest.approx(5.0, abs=0.05)
    assert drawn[:, 0].std() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(drawn[:, 1], -2 * drawn[:, 0])  # joint values
    far = found.draw(np.array([30, 1]), np.array([0.5, 0.5]), {})
    assert far[0, 0] > 3 > far[1, 0]  # the nearest size
    given = found.draw(np.full(500, 7), (np.arange(500) + 0.5) / 500, {"mass": -11.0})
    assert (given[:, 1] == -11.0).all()
    assert given[:, 0].mean() == pytest.approx(5.5, abs=0.1)  # the other follows what was asked for


def test_unknown_properties_and_odd_values_are_refused_or_warned_of():
    found = Conditions.from_structures(chains([2, 2], [1.0, 2.0]), ["gap"])
    assert found.check({"gap": 1.5}) == []
    assert "gap=7 lies outside the training data (1 to 2)" in found.check({"gap": 7.0})[0]
    with pytest.raises(UserError, match=r"no property 'gapp'; it was trained with gap"):
        found.check({"gapp": 1.0})
    with pytest.raises(UserError, match="finite"):
        found.check({"gap": float("nan")})
    with pytest.raises(DataError, match="same in all molecules"):
        Conditions.from_structures(chains([2, 2], [1.0, 1.0]), ["gap"])
    with pytest.raises(DataError, match=r"no property 'homo' \(there are gap, mass\)"):
        property_of(chains([2], [1.0])[0], "homo")
    with pytest.raises(DataError, match="'gap' is no number"):
        property_of(chains([2], ["wide"])[0], "gap")


def test_context_enters_before_the_first_the_second_and_the_last_layer():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Eqgat(EqgatConfig(12, 4, 6, 5), [4, 3], 5, context=2).double()
        layout = Layout.of(torch.tensor([4, 3]))
        given = {
            "atoms": torch.randn(7, 7, dtype=torch.float64),
            "bonds": torch.randn(18, 5, dtype=torch.float64),
            "positions": torch.randn(7, 3, dtype=torch.float64),
            "time": torch.rand(2, dtype=torch.float64),
            "context": torch.randn(2, 2, dtype=torch.float64),
        }
    names = set(model.state_dict()) - set(Eqgat(EqgatConfig(12, 4, 6, 5), [4, 3], 5).state_dict())
    assert {name.split(".")[0] for name in names} == {"context_in", "context_mix"}
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[1], outputs[0])))
    model(layout, **given)
    wish = model.context_mix(model.context_in(given["context"]))[layout.batch]
    for k in range(1, 5):
        added = seen[k][0] - seen[k - 1][1]
        torch.testing.assert_close(added, wish if k in (1, 4) else torch.zeros_like(wish))
    plain = model.atoms_mix(
        model.atoms_in(given["atoms"]) + model.time_to_atoms(given["time"].clamp(min=1e-3).unsqueeze(1))[layout.batch]
    )
    torch.testing.assert_close(seen[0][0], plain + wish)


def test_an_oracle_of_the_context_gives_each_molecule_what_it_asks_for(small):
    """The context reaches the network molecule by molecule, standardised."""
    molecules = small.structures(("CC#N", "CCO"))
    vocabulary = Vocabulary.from_structures(molecules)
    clean = collate(encode_all(molecules, vocabulary), torch.float64)
    context = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)

    def denoise(noisy, t):
        which = (noisy.context[:, 0] < 0).long()  # 0: CC#N, 1: CCO
        nodes = (3 * which.unsqueeze(1) + torch.arange(3)).reshape(-1)
        pairs = (3 * which.unsqueeze(1) + torch.arange(3)).reshape(-1)
        logits = [
            1e4 * torch.nn.functional.one_hot(clean.atoms[nodes, k], len(c)).double()
            for k, c in enumerate(vocabulary.atoms.values())
        ]
        bonds = torch.nn.functional.one_hot(clean.bonds[clean.layout.pairs][pairs], len(vocabulary.bonds))
        return Prediction(clean.positions[nodes], tuple(logits), 1e4 * bonds.double())

    diffusion = Diffusion(DiffusionConfig(steps=10), vocabulary)
    out = sample(denoise, diffusion, torch.full((5,), 3), seed=0, context=context, dtype=torch.float64)
    last = out.atoms[2::3, 0]
    elements = [vocabulary.atoms["element"].values[k] for k in last.tolist()]
    assert elements == [7, 8, 7, 8, 8]


def learned(small, steps=220, **diffusion):
    """A generator that has seen two molecules of equal size with opposite properties."""
    molecules = small.structures(("CC#N", "CC=O"))
    for molecule, value in zip(molecules, (20.0, 30.0), strict=True):
        molecule.info["gap"] = value
    conditions = Conditions.from_structures(molecules, ["gap"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = {"scalars": 32, "vectors": 8, "edges": 8, "layers": 3, "norm": "corrected"}
        config = {"network": network, "diffusion": {"steps": 20, **diffusion}}
        model = EqgatDiff.from_config(config, Vocabulary.from_structures(molecules), conditions=conditions)
        batch = collate(encode_all(molecules * 10, model.vocabulary, conditions=conditions))
        trainee = Trainee(
            GeneratorTask(model),
            TrainingOptions(epochs=1, ema=0.97),
            OptimizerOptions(lr=5e-3, clip=1.0),
            ScheduleOptions(warmup=0.02),
        )
        for _ in range(steps):
            trainee.step(batch, steps)
        trainee.average._copy(trainee.average.shadow)
    return model


def test_generation_aims_at_the_property(small):
    model = learned(small)
    for value, formula, order in ((20.0, "C2N", 3), (30.0, "C2O", 2)):
        drawn = model.sample(40, seed=1, properties={"gap": value})
        right = [s.formula == formula and order in s.bonds[:, 2] for s in drawn]
        assert np.mean(right) >= 0.8
        assert {s.info["wanted_gap"] for s in drawn} == {value}
    free = model.sample(60, seed=2)
    assert {s.info["wanted_gap"] for s in free} == {20.0, 30.0}
    fits = [(s.formula == "C2N") == (s.info["wanted_gap"] == 20.0) for s in free]
    assert np.mean(fits) >= 0.8
    again = model.sample(1, seed=2, first=7)[0]
    assert again.info["wanted_gap"] == free[7].info["wanted_gap"]


def test_properties_of_an_sd_file_are_learned_and_kept(small, tmp_path):
    molecules = small.structures() * 3
    for k, molecule in enumerate(molecules):
        molecule.info["gap"] = 5 + 0.5 * (k % 4)
    molecules.append(small.structures()[0])  # without
    write(tmp_path / "set.sdf", molecules)
    base = from_dict(
        GeneratorTraining,
        {
            "run": str(tmp_path / "plain"),
            "model": {"config": {"preset": "cpu", "network": {"layers": 3}, "diffusion": {"steps": 5}}},
            "data": {"train": str(tmp_path / "*.sdf"), "val": 0.2, "molecules": {"hydrogens": "remove"}},
            "training": {"epochs": 1, "threads": 1, "tensorboard": False},
        },
    )
    train(base)
    plain = tesseral.load(tmp_path / "plain" / "model.safetensors")
    with pytest.raises(UserError, match="without properties"):
        plain.sample(1, properties={"gap": 5.0})
    init = {"config": {}, "init": str(tmp_path / "plain" / "model.safetensors")}
    changes = {"run": str(tmp_path / "run"), "model": init, "data": {"condition": ["gap"]}}
    result = train(from_dict(GeneratorTraining, changes, base=base))
    assert any("no property 'gap'" in reason for reason in result["left_out"])
    model = tesseral.load(tmp_path / "run" / "model.safetensors")
    assert model.conditions.names == ("gap",)
    assert model.conditions.limits == ((5.0, 6.5),)
    assert model.sample(1, properties={"gap": 5.5}, options=SamplerOptions(2))[0].info["wanted_gap"] == 5.5
    with pytest.raises(UserError, match="no property 'homo'"):
        model.sample(1, properties={"homo": 5.5})
    tuned = {"init": str(tmp_path / "run" / "model.safetensors"), "config": {}}
    changes = {"run": str(tmp_path / "third"), "model": tuned}
    with pytest.raises(ConfigError, match=r"data\.condition=\['gap'\]"):
        train(from_dict(GeneratorTraining, changes, base=base))


def test_fine_tuning_with_a_property_starts_from_the_same_predictions(small, tmp_path):
    """New layers for the context add nothing at first."""
    from tesseral.generative import fit

    molecules = small.structures()
    for k, molecule in enumerate(molecules):
        molecule.info["gap"] = float(k)
    plain = small.model(molecules)
    path = save(plain, tmp_path / "plain.safetensors")
    config = from_dict(GeneratorTraining, {"model": {"init": str(path)}, "data": {"condition": ["gap"]}})
    tuned = fit._model(config, molecules)
    batch = collate(encode_all(molecules, tuned.vocabulary, conditions=tuned.conditions))
    t = torch.tensor([1, 9, 17, 25])
    expected = plain(replace(batch, context=None), t)
    torch.testing.assert_close(tuned(batch, t).positions, expected.positions)
    torch.testing.assert_close(tuned(batch, t).bonds, expected.bonds)
    assert any(name.startswith("network.context") for name in tuned.state_dict())
