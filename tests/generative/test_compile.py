"""A generator's network through torch.compile: equal gradients, or refused."""

import shutil

import pytest
import torch

from tesseral.generative.eqgat import Eqgat
from tesseral.generative.loader import encode_all
from tesseral.generative.molecules import collate
from tesseral.generative.task import GeneratorTask, compile_network
from tesseral.training.config import ConfigError


@pytest.fixture
def task_and_batches(small):
    molecules = small.structures()
    model = small.model(molecules, layers=1, scalars=8, vectors=4, edges=4)
    encoded = encode_all(molecules, model.vocabulary)
    return GeneratorTask(model), [collate(encoded), collate(encoded[:3]), collate(encoded[1:])]


def gradient(task, batch):
    torch.manual_seed(3)
    losses = task.losses(batch, training=True)
    return torch.autograd.grad(losses.totals.sum(), list(task.parameters()))


def test_compiled_gradients_are_those_of_the_eager_network_at_any_size(task_and_batches):
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    task, batches = task_and_batches
    eager = [gradient(task, batch) for batch in batches]
    compile_network(task, batches[0])
    for batch, expected in zip(batches, eager, strict=True):
        for a, b in zip(gradient(task, batch), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_compiler_that_goes_wrong_is_refused(task_and_batches, monkeypatch):
    task, batches = task_and_batches

    def wrong(self, **options):
        def call(*args, **kwargs):
            prediction = self.forward(*args, **kwargs)
            return prediction._replace(positions=1.1 * prediction.positions)

        self._compiled_call_impl = call

    monkeypatch.setattr(Eqgat, "compile", wrong)
    eager = gradient(task, batches[0])
    with pytest.raises(ConfigError, match=r"gradients differ.*training\.compile=false"):
        compile_network(task, batches[0])
    for a, b in zip(gradient(task, batches[0]), eager, strict=True):
        torch.testing.assert_close(a, b)
