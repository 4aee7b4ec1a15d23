"""Learning rate, loss weights, plateau, moving average, optimiser groups."""

import itertools
import math

import pytest
import torch
from torch import nn

from tesseral.training.config import ConfigError
from tesseral.training.ema import MovingAverage
from tesseral.training.optimizers import build_optimizer, freeze
from tesseral.training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from tesseral.training.schedule import Plateau, check_weight, learning_rate_factor, weight_at
from tesseral.training.task import Progress


def test_cosine_warms_up_linearly_and_ends_at_the_final_factor():
    options = ScheduleOptions(warmup=0.1, final=0.02)
    assert learning_rate_factor(options, 0.0) == 0
    assert learning_rate_factor(options, 0.05) == pytest.approx(0.5)
    assert learning_rate_factor(options, 0.1) == pytest.approx(1.0)
    assert learning_rate_factor(options, 0.55) == pytest.approx(0.51)  # half way: mean of 1 and 0.02
    assert learning_rate_factor(options, 1.0) == pytest.approx(0.02)
    assert learning_rate_factor(options, 1.3) == pytest.approx(0.02)
    values = [learning_rate_factor(options, 0.1 + 0.009 * k) for k in range(101)]
    assert all(a >= b for a, b in itertools.pairwise(values))


def test_linear_falls_evenly_to_the_final_factor():
    options = ScheduleOptions(name="linear", warmup=0.2, final=0.1)
    values = [learning_rate_factor(options, p) for p in (0.1, 0.2, 0.6, 1.0)]
    assert values == pytest.approx([0.5, 1.0, 0.55, 0.1])


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_other_schedules_stay_at_one_after_warm_up(name):
    options = ScheduleOptions(name=name, warmup=0.0)
    assert {learning_rate_factor(options, p) for p in (0, 0.3, 1)} == {1.0}


def test_weights_step_at_their_starts():
    steps = {0.0: 1.0, 0.75: 10.0}
    assert [weight_at(steps, p) for p in (0, 0.7499, 0.75, 1)] == [1, 1, 10, 10]
    assert weight_at(3.0, 0.5) == 3
    for bad in ({0.1: 1.0}, {0.0: 1.0, 1.0: 2.0}, -1.0, {}, math.inf):
        with pytest.raises(ConfigError, match="w:"):
            check_weight("w", bad)


def test_plateau_reduces_after_patience_and_not_below_the_final_factor():
    plateau = Plateau(ScheduleOptions(name="plateau", factor=0.5, patience=1, final=0.2))
    factors = []
    for value in (1.0, 0.9, 0.95, 0.95, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9):
        plateau.update(value)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_progress_is_the_larger_share_of_epochs_and_time():
    progress = Progress(epoch=2, batch=5, elapsed=30.0)
    assert progress.fraction(TrainingOptions(epochs=10), 10) == pytest.approx(0.25)
    assert progress.fraction(TrainingOptions(epochs=10, max_time=1.0), 10) == pytest.approx(0.5)
    assert progress.fraction(TrainingOptions(epochs=10, max_time=100.0), 10) == pytest.approx(0.25)
    assert Progress(epoch=11).fraction(TrainingOptions(epochs=10), 10) == 1


def test_moving_average_follows_its_formula_and_swaps_in_place():
    module = nn.Linear(2, 1, bias=False).double()
    average = MovingAverage(module, 0.9)
    expected, address = module.weight.detach().clone(), module.weight.data_ptr()
    for n in range(30):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    before = module.weight.detach().clone()
    with average.applied():
        assert torch.allclose(module.weight, expected, rtol=1e-13)
        assert module.weight.data_ptr() == address
    assert torch.equal(module.weight, before)


def test_swap_is_undone_when_the_block_fails():
    module = nn.Linear(2, 1)
    average = MovingAverage(module, 0.9)
    with torch.no_grad():
        module.weight.add_(1.0)
    before = module.weight.detach().clone()
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError("validation failed")
    assert torch.equal(module.weight, before)


def test_only_matrices_decay():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(module, OptimizerOptions(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in module.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_prodigy_minimises_without_a_learning_rate():
    pytest.importorskip("prodigyopt")
    module = nn.Linear(4, 1).double()
    optimizer = build_optimizer(module, OptimizerOptions(name="prodigy", weight_decay=0.0))
    x, target = (
        torch.eye(4, dtype=torch.float64),
        torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64),
    )
    start = None
    for _ in range(150):
        optimizer.zero_grad()
        loss = (module(x) - target).square().mean()
        start = loss.item() if start is None else start
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * start


def test_freezing_by_pattern_and_its_mistakes():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert freeze(module, ["0.*"]) == ["0.bias", "0.weight"]
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    with pytest.raises(ConfigError, match=r"'2\.\*' matches no parameter; there are: 0\.weight"):
        freeze(module, ["2.*"])
    freeze(module, ["1.*"])
    with pytest.raises(ConfigError, match="every one is frozen"):
        build_optimizer(module, OptimizerOptions())
