"""The joint process and the sampler: oracle network, fixed parts, guidance, paths, independence of the batch."""

import numpy as np
import pytest
import torch

from tesseral.datasets.errors import UserError
from tesseral.datasets.structure import Structure
from tesseral.generative.diffusion import Diffusion, DiffusionConfig, time_weights
from tesseral.generative.eqgat import Eqgat, EqgatConfig, Prediction
from tesseral.generative.layout import Layout
from tesseral.generative.molecules import Molecules, collate, encode
from tesseral.generative.sampler import FixedPart, Recorder, SamplerOptions, sample
from tesseral.generative.streams import Streams
from tesseral.generative.task import per_molecule
from tesseral.generative.vocabulary import published_vocabulary

VOCABULARY = published_vocabulary()


def random_molecules(sizes, seed=0):
    """Chains with random elements, charges and bond orders."""
    rng = np.random.default_rng(seed)
    structures = []
    for n in sizes:
        bonds = [[k, k + 1, rng.integers(1, 5)] for k in range(n - 1)]
        charges = rng.choice([-1, 0, 0, 0, 1], size=n)
        structures.append(
            Structure(
                rng.choice([1, 6, 7, 8], size=n),
                rng.normal(size=(n, 3)) * 1.5,
                bonds=bonds,
                arrays={"formal_charges": charges},
            )
        )
    return collate([encode(s, VOCABULARY) for s in structures], torch.float64)


def oracle(clean, sizes=(16, 6)):
    """A network that knows the answer."""
    layout = clean.layout
    logits = [1e4 * torch.nn.functional.one_hot(clean.atoms[:, k], n) for k, n in enumerate(sizes)]
    bonds = 1e4 * torch.nn.functional.one_hot(clean.bonds[layout.pairs], 5)
    return lambda noisy, t: Prediction(clean.positions, tuple(x.double() for x in logits), bonds.double())


def network(seed=0, vocabulary=VOCABULARY):
    """An untrained network as a denoiser of T = 20, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [len(c) for c in vocabulary.atoms.values()]
        model = Eqgat(EqgatConfig(16, 4, 8, 2), sizes, len(vocabulary.bonds)).double()
    diffusion = Diffusion(DiffusionConfig(steps=20), vocabulary)

    def denoise(noisy, t):
        atoms, bonds = diffusion.channels(noisy)
        return model(noisy.layout, atoms=atoms, bonds=bonds, positions=noisy.positions, time=t / 20)

    return denoise, diffusion


@pytest.mark.parametrize("calls", [500, 25, 1])
@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_with_an_oracle_the_sampler_returns_the_molecule(calls, eta):
    clean = random_molecules([1, 2, 9, 17])
    diffusion = Diffusion(DiffusionConfig(), VOCABULARY)
    out = sample(
        oracle(clean),
        diffusion,
        clean.layout.n_atoms,
        seed=5,
        options=SamplerOptions(calls, eta),
        dtype=torch.float64,
    )
    assert torch.equal(out.atoms, clean.atoms)
    assert torch.equal(out.bonds, clean.bonds)
    rms = float((out.positions - clean.positions).square().mean().sqrt())
    assert 0.5e-4 < rms < 2e-4  # the noise that is left at time 0: 1.2e-4 Å


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_gaussian_noise_on_classes_is_inverted_by_an_oracle(eta):
    """Also with x_t that is far from one-hot, and back into the noise in between."""
    clean = random_molecules([1, 2, 9])
    diffusion = Diffusion(DiffusionConfig(classes="gaussian"), VOCABULARY)
    recorder, options = Recorder(), SamplerOptions(25, eta, resample=2)
    n_atoms = clean.layout.n_atoms
    out = sample(oracle(clean), diffusion, n_atoms, seed=5, options=options, callback=recorder, dtype=torch.float64)
    assert torch.equal(out.atoms, clean.atoms)
    assert torch.equal(out.bonds, clean.bonds)
    assert not torch.equal(recorder.frames[0].atoms, clean.atoms)
    assert recorder.frames[0].atoms.dtype == torch.int64


def test_gaussian_channels_have_the_moments_of_the_table_and_are_symmetric():
    clean = random_molecules([12] * 400, seed=3)
    diffusion, layout = Diffusion(DiffusionConfig(classes="gaussian"), VOCABULARY), clean.layout
    noisy = diffusion.noised(clean, torch.full((400,), 250), Streams(0, torch.arange(400)))
    atoms, bonds = diffusion.channels(noisy)
    one_hot = torch.nn.functional.one_hot
    charges, orders = one_hot(clean.atoms[:, 1], 6).double(), one_hot(clean.bonds, 5).double()
    for found, wanted, alpha in ((atoms[:, 16:], charges, 0.492288), (bonds, orders, 0.713378)):
        left = found - alpha * wanted
        assert float(left.mean()) == pytest.approx(0.0, abs=0.02)
        assert float(left.square().mean()) == pytest.approx(1 - alpha**2, rel=0.02)
    assert torch.equal(noisy.bonds, noisy.bonds[layout.reverse])


@pytest.mark.parametrize("amplitude", ["level", "root"])
def test_a_network_that_knows_the_noise_is_an_oracle_too(amplitude):
    """target = noise: the network's output is x_t + ε, and the sampler returns the molecule."""
    clean = random_molecules([1, 2, 9, 17])
    diffusion = Diffusion(DiffusionConfig(target="noise", amplitude=amplitude), VOCABULARY)
    answer, process = oracle(clean), diffusion.positions

    def denoise(noisy, t):
        of_atom = t[noisy.layout.batch]
        alpha, sigma = process.alpha[of_atom].unsqueeze(1), process.variance[of_atom].sqrt().unsqueeze(1)
        output = noisy.positions + (noisy.positions - alpha * clean.positions) / sigma
        return answer(noisy, t)._replace(positions=diffusion.clean_positions(noisy, output, t))

    n_atoms = clean.layout.n_atoms
    out = sample(denoise, diffusion, n_atoms, seed=5, options=SamplerOptions(50), dtype=torch.float64)
    rms = float((out.positions - clean.positions).square().mean().sqrt())
    assert rms < 0.02
    assert torch.equal(out.bonds, clean.bonds)


def test_error_of_the_noise_is_that_of_the_molecule_times_signal_to_noise():
    clean = random_molecules([5, 8])
    diffusion = Diffusion(DiffusionConfig(target="noise", steps=20), VOCABULARY)
    t = torch.tensor([3, 17])
    noisy = diffusion.noised(clean, t, Streams(0, torch.arange(2)))
    of_atom = t[clean.layout.batch]
    alpha, sigma = (diffusion.positions.alpha[of_atom], diffusion.positions.variance[of_atom].sqrt())
    noise = (noisy.positions - alpha.unsqueeze(1) * clean.positions) / sigma.unsqueeze(1)
    guess = torch.randn(13, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    guess = clean.centred(guess)
    positions = diffusion.clean_positions(noisy, noisy.positions + guess, t)
    prediction = oracle(clean)(noisy, t)._replace(positions=positions)
    found = per_molecule(prediction, clean, diffusion.position_weights(t))[:, 0]
    square = (guess - noise).square().mean(1)
    expected = torch.stack([square[:5].mean(), square[5:].mean()])
    torch.testing.assert_close(found, expected)


def test_noise_has_the_frequencies_and_variances_of_the_tables():
    clean = random_molecules([12] * 400, seed=3)
    layout, diffusion = clean.layout, Diffusion(DiffusionConfig(), VOCABULARY)
    t = torch.full((400,), 250)
    noisy = diffusion.noised(clean, t, Streams(0, torch.arange(400)))
    alpha = 0.918747
    left = noisy.positions - alpha * clean.positions
    assert float(left.square().mean()) == pytest.approx((1 - alpha**2) * 11 / 12, rel=0.03)
    kept = float((noisy.atoms[:, 0] == clean.atoms[:, 0]).double().mean())
    match = float(torch.tensor(VOCABULARY.atoms["element"].frequencies)[clean.atoms[:, 0]].mean())
    assert kept == pytest.approx(0.492288 + (1 - 0.492288) * match, abs=0.03)
    same = float((noisy.bonds == clean.bonds).double().mean())
    match = float(torch.tensor(VOCABULARY.bonds.frequencies)[clean.bonds].mean())
    assert same == pytest.approx(0.713378 + (1 - 0.713378) * match, abs=0.01)
    assert torch.equal(noisy.bonds, noisy.bonds[layout.reverse])


def test_every_state_is_centred_and_symmetric():
    denoise, diffusion = network()
    recorder = Recorder()
    n_atoms = torch.tensor([1, 2, 7])
    sample(denoise, diffusion, n_atoms, seed=0, callback=recorder, dtype=torch.float64)
    assert recorder.times == list(range(20, -1, -1))
    for state in recorder.frames:
        total = torch.zeros(3, 3, dtype=torch.float64).index_add(0, state.layout.batch, state.positions)
        assert float(total.abs().max()) < 1e-10
        assert torch.equal(state.bonds, state.bonds[state.layout.reverse])


def test_a_molecule_depends_on_seed_and_number_alone():
    denoise, diffusion = network()
    sizes = torch.tensor([5, 9, 3])
    together = sample(denoise, diffusion, sizes, seed=7, dtype=torch.float64)
    for g in range(3):
        alone = sample(denoise, diffusion, sizes[g : g + 1], seed=7, numbers=torch.tensor([g]), dtype=torch.float64)
        nodes = together.layout.batch == g
        assert torch.equal(alone.atoms, together.atoms[nodes])
        torch.testing.assert_close(alone.positions, together.positions[nodes], atol=1e-9, rtol=0)
    other = sample(denoise, diffusion, sizes, seed=8, dtype=torch.float64)
    assert not torch.allclose(other.positions, together.positions)


@pytest.mark.parametrize("sizes", [[1], [2], [181]])
def test_untrained_network_at_extreme_sizes(sizes):
    denoise, diffusion = network()
    out = sample(denoise, diffusion, torch.tensor(sizes), seed=0, options=SamplerOptions(calls=4), dtype=torch.float64)
    assert bool(torch.isfinite(out.positions).all())
    assert out.bonds.shape == (sizes[0] * (sizes[0] - 1),)


@pytest.mark.parametrize("resample", [1, 3])
def test_fixed_part_is_returned_unchanged(resample):
    denoise, diffusion = network()
    core = random_molecules([4], seed=9)
    layout = Layout.of(torch.tensor([9, 9]))
    fixed = layout.local < 4
    atoms = torch.zeros(18, 2, dtype=torch.int64)
    atoms[fixed] = core.atoms.repeat(2, 1)
    positions = torch.zeros(18, 3, dtype=torch.float64)
    positions[fixed] = core.positions.repeat(2, 1) + 5.0
    table = torch.zeros(9, 9, dtype=torch.int64)
    table[core.layout.edge_index[1], core.layout.edge_index[0]] = core.bonds
    bonds = table[~torch.eye(9, dtype=torch.bool)].repeat(2)
    part = FixedPart(Molecules(layout, atoms, bonds, positions), fixed)
    out = sample(
        denoise,
        diffusion,
        layout.n_atoms,
        seed=1,
        options=SamplerOptions(resample=resample),
        fixed=part,
        dtype=torch.float64,
    )
    inside = fixed[layout.edge_index[0]] & fixed[layout.edge_index[1]]
    assert torch.equal(out.bonds[inside], bonds[inside])
    assert torch.equal(out.atoms[fixed], atoms[fixed])
    for g in range(2):
        found = out.positions[fixed & (layout.batch == g)]
        torch.testing.assert_close(found - found.mean(0), core.positions - core.positions.mean(0), atol=1e-12, rtol=0)
    free = out.positions[~fixed]
    assert not torch.allclose(free[:5], free[5:])


def test_fixed_part_follows_the_forward_process():
    """With an oracle, the noisy fixed atoms at time t have mean α_t x_0 and variance σ_t²: their exact posterior."""
    n = 3000
    core = random_molecules([3], seed=2)
    layout = Layout.of(torch.full((n,), 3))
    clean = Molecules(layout, core.atoms.repeat(n, 1), core.bonds.repeat(n), core.positions.repeat(n, 1))
    diffusion = Diffusion(DiffusionConfig(steps=20), VOCABULARY)
    recorder = Recorder()
    sample(
        oracle(clean),
        diffusion,
        layout.n_atoms,
        seed=0,
        options=SamplerOptions(calls=4),
        callback=recorder,
        dtype=torch.float64,
    )
    noise = diffusion.positions
    for t, state in zip(recorder.times, recorder.frames, strict=True):
        positions = state.positions.reshape(n, 3, 3)
        torch.testing.assert_close(positions.mean(0), noise.alpha[t] * core.positions, atol=0.06, rtol=0)
        variance = float(positions.var(0).mean())
        assert variance == pytest.approx(float(noise.variance[t]) * 2 / 3, rel=0.05)


def test_guide_changes_predictions():
    denoise, diffusion = network()
    wanted = VOCABULARY.atoms["element"].values.index(6)

    def carbon(prediction, noisy, t):
        first = torch.full_like(prediction.atoms[0], -1e4)
        first[:, wanted] = 1e4
        return prediction._replace(atoms=(first, *prediction.atoms[1:]))

    out = sample(denoise, diffusion, torch.tensor([6]), seed=0, guides=[carbon], dtype=torch.float64)
    assert bool((out.atoms[:, 0] == wanted).all())


def test_resampling_noise_composes():
    diffusion = Diffusion(DiffusionConfig(steps=20), VOCABULARY)
    for noise in (*diffusion.atoms, diffusion.bonds):
        at_s, classes = noise.forward(torch.arange(noise.n_classes), 4), torch.arange(noise.n_classes)
        torch.testing.assert_close(at_s @ noise.between(classes, 13, 4), noise.forward(classes, 13))
    gauss, one = diffusion.positions, torch.ones(1, dtype=torch.float64)
    ratio = gauss.between(one, 0 * one, t=13, s=4)
    spread = gauss.between(0 * one, one, t=13, s=4)
    assert float(ratio * gauss.alpha[4]) == pytest.approx(float(gauss.alpha[13]))
    assert float(ratio**2 * gauss.variance[4] + spread**2) == pytest.approx(float(gauss.variance[13]))


@pytest.mark.parametrize("weighting", ["snr", "snr-bonds", "difference", "exponential", "uniform"])
def test_weights_of_times_are_positive_and_never_grow(weighting):
    weights = time_weights(DiffusionConfig(weighting=weighting))
    assert weights.shape == (501,)
    assert float(weights.min()) > 0
    assert bool((weights[1:] <= weights[:-1] + 1e-12).all()) or weighting == "difference"
    bounds = {"snr": (0.05, 1.5), "snr-bonds": (0.05, 5), "difference": (0.05, 1.5), "uniform": (1, 1)}
    low, high = bounds.get(weighting, (0.1, 1))
    assert float(weights.min()) == pytest.approx(low)
    assert float(weights.max()) == pytest.approx(high)


def test_wishes_out_of_range_are_refused():
    denoise, diffusion = network()
    with pytest.raises(UserError, match=r"1\.\.20 steps"):
        sample(denoise, diffusion, torch.tensor([3]), seed=0, options=SamplerOptions(calls=21))
    with pytest.raises(UserError, match="eta"):
        SamplerOptions(eta=1.5)


def test_temperature_divides_the_logits_of_classes_alone():
    denoise, diffusion = network()
    n_atoms = torch.tensor([3, 7])

    def divided(noisy, t):
        found = denoise(noisy, t)
        return Prediction(found.positions, tuple(x / 0.5 for x in found.atoms), found.bonds / 0.5)

    def drawn(denoiser, temperature):
        options = SamplerOptions(10, temperature=temperature)
        return sample(denoiser, diffusion, n_atoms, seed=3, options=options, dtype=torch.float64)

    ours, expected, plain = drawn(denoise, 0.5), drawn(divided, 1.0), drawn(denoise, 1.0)
    assert torch.equal(ours.atoms, expected.atoms)
    assert torch.equal(ours.bonds, expected.bonds)
    assert torch.equal(ours.positions, expected.positions)
    assert not torch.equal(ours.positions, plain.positions)
    with pytest.raises(UserError, match="temperature"):
        SamplerOptions(temperature=0.0)
