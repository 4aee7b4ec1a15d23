"""The loss: values, masks, invariance, gradients; reported errors."""

import pytest
import torch

from tesseral.datasets.graph import collate, graph_from_structure
from tesseral.potentials.base import Prediction, predict
from tesseral.potentials.loss import (
    LossOptions,
    TermOptions,
    distance,
    errors_of,
    loss_terms,
    squared_lengths,
)
from tesseral.potentials.task import PotentialTask, error_report, error_sums
from tesseral.training.config import ConfigError

LABELS = ("energy", "forces", "stress")


@pytest.fixture
def batch(toy):
    frames = toy.frames(4, seed=3)
    del frames[0].labels["forces"]
    del frames[1].labels["energy"]
    return collate([graph_from_structure(f, 3.0, dtype=torch.float64, labels=LABELS) for f in frames])


@pytest.mark.parametrize("function", ["huber", "mse", "mae"])
def test_distance_functions(function):
    x = torch.tensor([0.0, 0.003, 0.01, 0.5], dtype=torch.float64)
    expected = {
        "mse": x**2,
        "mae": x,
        "huber": torch.nn.functional.huber_loss(x, torch.zeros_like(x), delta=0.01, reduction="none"),
    }
    result = distance(TermOptions(function=function, delta=0.01), x * x)
    assert torch.allclose(result, expected[function], rtol=1e-14, atol=0)


@pytest.mark.parametrize("function", ["huber", "mse", "mae"])
def test_gradient_is_right_and_finite_at_zero_error(function):
    term = TermOptions(function=function, delta=0.1)

    def cost(values):
        return distance(term, squared_lengths("forces", values)).sum()

    values = torch.tensor([[0.0, 0, 0], [0.01, 0.02, 0], [1.0, -2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(values), values)
    assert torch.equal(gradient[0], torch.zeros(3, dtype=torch.float64))
    away = values.detach()[1:].clone().requires_grad_()
    assert torch.autograd.gradcheck(cost, (away,))


def random_rotation():
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    return q


@pytest.mark.parametrize("function", ["huber", "mse", "mae"])
def test_loss_is_invariant_under_rotation_of_the_errors(function):
    q, term = random_rotation(), TermOptions(function=function)
    forces = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(
        distance(term, squared_lengths("forces", forces)),
        distance(term, squared_lengths("forces", forces @ q.T)),
    )
    tensor = torch.randn(3, 3, dtype=torch.float64)
    tensor = tensor + tensor.T

    def voigt(t):
        return torch.stack([t[0, 0], t[1, 1], t[2, 2], t[1, 2], t[0, 2], t[0, 1]])[None]

    turned = squared_lengths("stress", voigt(q @ tensor @ q.T))
    assert torch.allclose(squared_lengths("stress", voigt(tensor)), turned)


def test_masked_entries_count_for_nothing(toy, batch):
    prediction = predict(toy.teacher(), batch)
    spoiled = Prediction(
        energy=prediction.energy.clone(),
        energies=prediction.energies,
        forces=prediction.forces.clone(),
        stress=prediction.stress.clone(),
        stress_mask=prediction.stress_mask,
    )
    spoiled.forces[batch.batch == 0] += 9
    spoiled.energy[1] += 9
    spoiled.stress[[0, 2]] += 9
    options = LossOptions(stress=TermOptions(weight=1.0))
    totals, counts = loss_terms(options, errors_of(spoiled, batch), batch)
    assert torch.allclose(totals, torch.zeros(3, dtype=torch.float64), atol=1e-20)
    assert counts.tolist() == [3, int(batch.n_atoms[1:].sum()), 2]


def test_totals_are_means_times_counts_with_weights_by_structure(toy, batch):
    prediction = predict(toy.teacher(8), batch)
    options = LossOptions(energy=TermOptions(function="mse"), forces=TermOptions(function="mae"))
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    totals, counts = loss_terms(options, errors_of(prediction, batch), batch, weights)
    energy = (prediction.energy - batch.labels["energy"]) / batch.n_atoms
    rows = torch.tensor([0, 2, 3])
    assert totals[0].item() == pytest.approx((weights[rows] * energy[rows] ** 2).sum().item())
    assert counts[0].item() == pytest.approx(4.5)
    force = (prediction.forces - batch.labels["forces"]).norm(dim=1)
    owners = batch.batch
    assert totals[1].item() == pytest.approx((weights[owners] * force)[owners > 0].sum().item())
    assert (totals[2].item(), counts[2].item()) == (0, 0)  # stress has weight 0


def test_loss_of_parts_adds_up_to_the_loss_of_the_whole(toy):
    graphs = [graph_from_structure(f, 3.0, dtype=torch.float64, labels=LABELS) for f in toy.frames(5, seed=1)]
    task = PotentialTask(toy.teacher(8), LossOptions(stress=TermOptions(weight=1.0)))
    whole = task.losses(collate(graphs), training=True)
    parts = [task.losses(collate(part), training=True) for part in (graphs[:1], graphs[1:])]
    for name in ("totals", "counts", "sums"):
        added = getattr(parts[0], name) + getattr(parts[1], name)
        assert torch.allclose(getattr(whole, name), added, rtol=1e-12), name


def test_report_in_the_promised_units(toy, batch):
    prediction = predict(toy.teacher(), batch)
    prediction.energy = prediction.energy + 0.002 * batch.n_atoms
    prediction.forces = prediction.forces + torch.tensor([0.03, 0.0, -0.03])
    prediction.stress = prediction.stress + 1 / 160.21766208
    report = error_report(error_sums(errors_of(prediction, batch)))
    assert report["energy_mae"] == pytest.approx(2.0)
    assert report["energy_rmse"] == pytest.approx(2.0)
    assert report["forces_mae"] == pytest.approx(20.0)
    assert report["forces_rmse"] == pytest.approx(30 * (2 / 3) ** 0.5)
    assert report["stress_mae"] == pytest.approx(1.0, rel=1e-6)


def test_labels_of_a_loss_and_a_loss_without_any():
    options = LossOptions(energy=TermOptions(weight=0.0), stress=TermOptions(weight={0.0: 0.0, 0.5: 1.0}))
    assert options.labels == ("forces", "stress")
    assert options.weights(0.4) == [0, 10, 0]
    assert options.weights(1.0) == [0, 10, 1]
    with pytest.raises(ConfigError, match="every weight of the loss is 0"):
        LossOptions(TermOptions(weight=0), TermOptions(weight=0), TermOptions(weight=0))
