"""A training compiles only after a trial whose gradients agree with the eager ones (compilers are doubled here)."""

import pytest
import torch

from tesseral.datasets.graph import graph_from_structure
from tesseral.potentials import task as task_module
from tesseral.potentials.base import energy_and_gradient
from tesseral.potentials.fit import train
from tesseral.potentials.loss import LossOptions
from tesseral.potentials.task import CompileError, PotentialTask, use_compiled
from tesseral.training.config import ConfigError


@pytest.fixture
def task(toy):
    return PotentialTask(toy.teacher(8), LossOptions())


@pytest.fixture
def batch(toy):
    return graph_from_structure(toy.frames(1)[0], 3.0, dtype=torch.float64, labels=("energy", "forces"))


def right(model, *arguments, **options):
    return energy_and_gradient(model, *arguments, **options)


def detached(model, *arguments, **options):
    """Right forces whose derivative with respect to the weights is lost."""
    energies, gradient = energy_and_gradient(model, *arguments, **options)
    return energies, gradient.detach()


def failing(model, *arguments, **options):
    raise RuntimeError("no C++ compiler\nmore lines")


def test_a_right_compiler_is_used(task, batch, monkeypatch):
    monkeypatch.setattr(task_module, "compile_gradient", lambda: right)
    use_compiled(task, batch)
    assert task.evaluate is right


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (detached, "compiled gradients differ from eager ones by"),
        (failing, "torch.compile failed: no C[+][+] compiler$"),
    ],
)
def test_a_wrong_or_failing_compiler_is_refused(task, batch, monkeypatch, compiler, message):
    monkeypatch.setattr(task_module, "compile_gradient", lambda: compiler)
    with pytest.raises(CompileError, match=message):
        use_compiled(task, batch)
    assert task.evaluate is energy_and_gradient


def test_asked_for_compilation_that_fails_ends_the_start(toy_config, monkeypatch):
    monkeypatch.setattr(task_module, "compile_gradient", lambda: failing)
    with pytest.raises(
        ConfigError, match=r"training\.compile=true: torch\.compile failed.*set training\.compile=false"
    ):
        train(toy_config("run", "training.compile=true"))
