"""Self-conditioning: what the network sees of its last estimate, and how it is handed on."""

from dataclasses import replace

import numpy as np
import torch

from tesseral.generative import build
from tesseral.generative.eqgat import Prediction
from tesseral.generative.estimate import channel_numbers, estimate_channels
from tesseral.generative.fit import _fitted
from tesseral.generative.loader import encode_all
from tesseral.generative.molecules import collate
from tesseral.generative.sampler import SamplerOptions
from tesseral.generative.task import GeneratorTask

SIZES = {"scalars": 24, "vectors": 8, "edges": 8, "layers": 3, "norm": "corrected"}


def conditioned(molecules, small, dtype=torch.float64, on=True):
    """An untrained generator of the molecules, T = 20."""
    config = {"network": SIZES, "diffusion": {"steps": 20}, "self_conditioning": on}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build("eqgat-diff", config, small.model(molecules).vocabulary).to(dtype)


def noisy_batch(model, molecules, dtype=torch.float64):
    batch = collate(encode_all(molecules, model.vocabulary), dtype)
    from tesseral.generative.streams import Streams

    n = batch.layout.n_molecules
    return model.diffusion.noised(batch, torch.full((n,), 8), Streams(1, torch.arange(n)))


def test_channels_count_bonds_and_show_the_estimate(small):
    """Acetonitrile: its own bonds, and an estimate of even probabilities at known places."""
    molecules = small.structures(("CC#N",))
    vocabulary = small.model(molecules).vocabulary
    clean = collate(encode_all(molecules, vocabulary), torch.float64)
    orders = [{0: "none", 1: "single", 3: "triple"}[v] for v in vocabulary.bonds.values]
    atoms = torch.nn.functional.one_hot(clean.atoms[:, 0], 2).double()
    bonds = torch.nn.functional.one_hot(clean.bonds, len(orders)).double()
    of_atoms, of_edges = estimate_channels(clean, atoms, bonds)
    assert (of_atoms.shape[1], of_edges.shape[1]) == channel_numbers(2, 3)
    counts = {name: of_atoms[:, -3 + k].tolist() for k, name in enumerate(orders)}
    assert counts == {"none": [1, 0, 1], "single": [1, 1, 0], "triple": [0, 1, 1]}
    assert not of_edges.any()
    assert not of_atoms[:, :-3].any()

    places = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 4, 0]], dtype=torch.float64)
    logits = torch.tensor([[0.0, np.log(3)]] * 3, dtype=torch.float64)
    guess = Prediction(places, (logits,), torch.zeros(3, 3, dtype=torch.float64))
    of_atoms, of_edges = estimate_channels(replace(clean, estimate=guess), atoms, bonds)
    np.testing.assert_allclose(of_atoms[:, :2], [[0.25, 0.75]] * 3)
    np.testing.assert_allclose(of_atoms[:, 2:5], 2 / 3)
    np.testing.assert_allclose(of_edges[:, :3], 1 / 3)
    assert of_edges[:, 3].tolist() == [3, 4, 3, 5, 4, 5]


def test_prediction_turns_with_molecule_and_estimate(small):
    molecules = small.structures()
    model = conditioned(molecules, small)
    noisy, t = noisy_batch(model, molecules), torch.full((4,), 8)
    guess = model(noisy, t)
    found = model(replace(noisy, estimate=guess), t)
    assert float((found.bonds - guess.bonds).detach().abs().max()) > 1e-4  # it is seen
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3))))[0]
    turned = replace(noisy, positions=noisy.positions @ turn)
    turned = replace(turned, estimate=guess._replace(positions=guess.positions @ turn))
    other = model(turned, t)
    torch.testing.assert_close(other.positions, found.positions @ turn)
    torch.testing.assert_close(other.bonds, found.bonds)


def test_widened_start_weights_change_nothing_at_first(small):
    molecules = small.structures()
    plain, model = conditioned(molecules, small, on=False), conditioned(molecules, small)
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    further = channel_numbers(*(x.weight.shape[1] for x in (plain.network.atoms_in, plain.network.bonds_in)))
    assert more == 24 * further[0] + 8 * further[1]
    model.load_state_dict(_fitted(plain.state_dict(), model.state_dict()))
    noisy, t = noisy_batch(plain, molecules), torch.full((4,), 8)
    wanted = plain(noisy, t)
    for found in (model(noisy, t), model(replace(noisy, estimate=wanted), t)):
        torch.testing.assert_close(found.positions, wanted.positions)
        torch.testing.assert_close(found.bonds, wanted.bonds)


def test_the_sampler_hands_each_estimate_on(small):
    """The first call sees none, each later one what the step before was drawn from, changes by a guide included."""
    molecules = small.structures()
    model = conditioned(molecules, small)
    seen, made = [], []

    def guide(prediction, noisy, t):
        seen.append(noisy.estimate)
        made.append(prediction._replace(positions=0.9 * prediction.positions))
        return made[-1]

    options = SamplerOptions(calls=5)
    model.sample(3, atoms=4, seed=2, options=options, guide=guide)
    assert seen[0] is None
    assert all(a is b for a, b in zip(seen[1:], made[:-1], strict=True))
    together = model.sample(3, seed=2, options=options)
    for k, one in enumerate(together):  # alone as in a batch
        alone = model.sample(1, seed=2, first=k, options=options)[0]
        np.testing.assert_allclose(alone.positions, one.positions, atol=1e-8)


def test_training_shows_the_estimate_in_half_of_the_steps_and_in_validation(small, monkeypatch):
    molecules = small.structures()
    model = conditioned(molecules, small, torch.float32)
    batch, task, seen = collate(encode_all(molecules, model.vocabulary)), GeneratorTask(model), []
    forward = type(model).forward

    def spy(self, noisy, t):
        seen.append((noisy.estimate is not None, torch.is_grad_enabled()))
        return forward(self, noisy, t)

    monkeypatch.setattr(type(model), "forward", spy)
    torch.manual_seed(0)
    for _ in range(100):
        task.losses(batch, training=True)
    twice = sum(with_one for with_one, _ in seen)
    assert 35 <= twice <= 65
    assert len(seen) == 100 + twice
    seen.clear()
    task.losses(batch, training=False)
    assert seen == [(False, False), (True, True)]
