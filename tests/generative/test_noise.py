"""Schedules against the published anchors; noise processes against matrix products and exact identities."""

from itertools import pairwise

import pytest
import torch

from tesseral.generative.noise import CategoricalNoise, GaussianNoise, centred
from tesseral.generative.schedule import adaptive_cosine, snr_weights, strided_times
from tesseral.generative.streams import Streams, choose

ANCHORS = {  # t: levels at exponents 1, 1.5, 2, 2.5 for T = 500
    50: (0.971161, 0.996181, 0.999337, 0.999845),
    100: (0.897198, 0.976768, 0.994420, 0.998483),
    200: (0.645694, 0.842360, 0.932408, 0.971079),
    250: (0.492288, 0.713378, 0.845889, 0.918747),
    300: (0.339631, 0.547254, 0.704390, 0.812135),
    400: (0.0936827, 0.183341, 0.282205, 0.380993),
    450: (0.0239964, 0.0508167, 0.0848339, 0.124244),
}
SMALL = {490: (9.673e-4, 2.154e-3, 3.789e-3, 5.857e-3), 500: (4.838e-7, 1.087e-6, 1.931e-6, 3.015e-6)}
EXPONENTS = (1.0, 1.5, 2.0, 2.5)


@pytest.mark.parametrize("column", range(4))
def test_published_levels(column):
    levels = adaptive_cosine(500, EXPONENTS[column])
    assert levels.shape == (501,)
    for t, row in ANCHORS.items():
        assert float(levels[t]) == pytest.approx(row[column], abs=1e-6)
    for t, row in SMALL.items():
        assert float(levels[t]) == pytest.approx(row[column], rel=1e-3)
    start = (1 - 0.999913, 1 - 0.999997, 1.55e-7, 6.9e-9)[column]
    assert float(1 - levels[0]) == pytest.approx(start, rel=0.02 if column > 1 else 0.2)


def test_published_loss_weights():
    weights = snr_weights(adaptive_cosine(500))
    assert bool((weights[:216] == 1.5).all())
    assert float(weights[216]) < 1.5
    for t, value in ((250, 0.970), (300, 0.514), (400, 0.103)):
        assert float(weights[t]) == pytest.approx(value, abs=5e-4)
    assert bool((weights[430:] == 0.05).all())
    assert float(weights[429]) > 0.05
    assert float(weights[1:].mean()) == pytest.approx(0.8665, abs=2e-4)


def test_strided_times():
    assert strided_times(500, 500) == list(range(500, -1, -1))
    for calls in (1, 7, 100, 333):
        times = strided_times(500, calls)
        assert times[0] == 500
        assert times[-1] == 0
        assert len(times) == calls + 1
        assert all(a > b for a, b in pairwise(times))
    with pytest.raises(ValueError, match="501"):
        strided_times(500, 501)


@pytest.fixture
def categorical():
    return CategoricalNoise(adaptive_cosine(20, 1.5), torch.tensor([0.6, 0.25, 0.1, 0.05]))


def matrix(noise, t, s=None):
    level = noise.levels[t] / (1 if s is None else noise.levels[s])
    return level * torch.eye(4, dtype=torch.float64) + (1 - level) * noise.marginals


def test_levels_compose(categorical):
    product = torch.eye(4, dtype=torch.float64)
    previous = None
    for t in range(21):
        product = product @ matrix(categorical, t, previous)
        torch.testing.assert_close(categorical.forward(torch.arange(4), t), product, atol=1e-14, rtol=0)
        previous = t


@pytest.mark.parametrize(("t", "s"), [(20, 19), (20, 0), (11, 4), (1, 0)])
def test_categorical_posterior_is_that_of_bayes(categorical, t, s):
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    for c_t in range(4):
        expected = torch.zeros(4, dtype=torch.float64)
        for c_0 in range(4):
            joint = matrix(categorical, s)[c_0] * matrix(categorical, t, s)[:, c_t]
            expected += probabilities[c_0] * joint / joint.sum()
        found = categorical.posterior(torch.tensor([c_t]), probabilities[None], t, s)[0]
        torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-12)
        assert float(found.sum()) == pytest.approx(1, abs=1e-12)


def test_categorical_takes_one_time_per_row(categorical):
    noisy, clean = torch.tensor([0, 3]), torch.softmax(torch.randn(2, 4), -1)
    t, s = torch.tensor([5, 20]), torch.tensor([1, 7])
    both = categorical.posterior(noisy, clean, t, s)
    for k in range(2):
        one = categorical.posterior(noisy[k : k + 1], clean[k : k + 1], int(t[k]), int(s[k]))
        torch.testing.assert_close(both[k : k + 1], one)


def test_classes_without_support_are_refused():
    with pytest.raises(ValueError, match="positive marginal"):
        CategoricalNoise(adaptive_cosine(5), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(("t", "s"), [(500, 499), (500, 0), (300, 100), (1, 0)])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_gaussian_step_keeps_the_marginals(t, s, eta):
    noise = GaussianNoise(adaptive_cosine(500, 2.5))
    a, b, c = noise.coefficients(t, s, eta)
    assert float(a * noise.alpha[t] + b) == pytest.approx(float(noise.alpha[s]), abs=1e-12)
    assert float(a**2 * noise.variance[t] + c**2) == pytest.approx(float(noise.variance[s]), rel=1e-9)
    assert eta or float(c) == 0


def test_ancestral_step_is_the_posterior():
    noise, t, s = GaussianNoise(adaptive_cosine(500, 2.5)), 321, 123
    ratio, share = noise.alpha[t] / noise.alpha[s], noise.variance[s] / noise.variance[t]
    a, b, c = noise.coefficients(t, s)
    torch.testing.assert_close(a, ratio * share)
    torch.testing.assert_close(b, noise.alpha[s] * (1 - ratio**2 * share))
    torch.testing.assert_close(c**2, (noise.variance[t] - ratio**2 * noise.variance[s]) * share)


def test_residual_noise_at_time_zero():
    assert float(GaussianNoise(adaptive_cosine(500, 2.5)).variance[0].sqrt()) == pytest.approx(1.2e-4, rel=0.03)


def test_centred_noise_has_no_mean_and_its_variance_is_reduced():
    n_atoms = torch.tensor([1, 2, 5]).repeat(4000)
    batch = torch.repeat_interleave(torch.arange(len(n_atoms)), n_atoms)
    streams = Streams(3, torch.arange(len(n_atoms)))
    first = torch.cat([torch.zeros(1, dtype=torch.int64), n_atoms.cumsum(0)[:-1]])
    local = torch.arange(len(batch)) - first[batch]
    counter = 3 * local[:, None] + torch.arange(3)
    x = centred(streams.normal(batch[:, None], counter), batch, n_atoms)
    mean = torch.zeros(len(n_atoms), 3, dtype=torch.float64).index_add(0, batch, x)
    assert float(mean.abs().max()) < 1e-12
    for n in (1, 2, 5):
        variance = float(x[n_atoms[batch] == n].square().mean())
        assert variance == pytest.approx((n - 1) / n, abs=0.02)


def test_streams_do_not_depend_on_the_batch_and_are_uniform():
    molecules = torch.arange(2000)
    counter = torch.arange(50).expand(2000, 50)
    u = Streams(0, molecules).uniform(molecules[:, None], counter)
    alone = Streams(0, molecules[700:701])
    torch.testing.assert_close(alone.uniform(torch.zeros(1, 1, dtype=torch.int64), counter[:1])[0], u[700])
    assert 0 < float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1
    counts = torch.histc(u, 20, 0, 1)
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 50  # chi², 19 degrees of freedom: p = 1e-4
    flat = u.flatten() - 0.5
    assert abs(float((flat[1:] * flat[:-1]).mean())) * 12 < 0.015
    across = u - 0.5
    assert abs(float((across[1:] * across[:-1]).mean())) * 12 < 0.015
    second = Streams(1, molecules).uniform(molecules[:, None], counter) - 0.5
    assert abs(float((across * second).mean())) * 12 < 0.015


def test_normal_numbers_have_the_moments_of_a_gaussian():
    streams = Streams(9, torch.arange(1))
    x = streams.normal(torch.tensor(0), torch.arange(200_000))
    assert abs(float(x.mean())) < 0.01
    assert float(x.var()) == pytest.approx(1, abs=0.015)
    assert float(x.pow(4).mean()) == pytest.approx(3, abs=0.1)
    y = streams.normal(torch.tensor(0), torch.arange(200_000))
    assert abs(float((x * y).mean())) < 0.01


def test_choose_follows_the_probabilities():
    probabilities = torch.tensor([0.0, 2.0, 1.0, 0.0, 1.0])
    u = (torch.arange(10_000).double() + 0.5) / 10_000
    counts = torch.bincount(choose(probabilities.expand(10_000, 5), u), minlength=5)
    assert counts.tolist() == [0, 5000, 2500, 0, 2500]
