"""Merged weights of frozen blocks: kept between calls, never out of date."""

import copy

import pytest
import torch

from tesseral.potentials.blocks import DegreeLinear

X = torch.randn(5, 3 * 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def linear():
    torch.manual_seed(1)
    block = DegreeLinear((3, 3), (2, 4)).requires_grad_(False)
    block(X)
    return block


def expected(block, x=X):
    """The map, degree by degree."""
    parts = x.split([3, 9], dim=1)
    return torch.cat(
        [(part.unflatten(1, (-1, 3)) @ (w / 3**0.5)).flatten(1) for part, w in zip(parts, block.weights, strict=True)],
        dim=1,
    )


def test_frozen_weights_are_merged_once(linear, monkeypatch):
    monkeypatch.setattr(DegreeLinear, "_merge", lambda self: pytest.fail("merged again"))
    torch.testing.assert_close(linear(X), expected(linear))


def in_place(block):
    block.weights[1].mul_(2)


def new_state(block):
    block.load_state_dict({key: value + 1 for key, value in block.state_dict().items()})


def new_storage(block):
    block.weights[0].data = torch.randn(3, 2)


def trained(block):
    block.requires_grad_(True)
    torch.optim.SGD(block.parameters(), lr=0.1)
    block(X).sum().backward()
    torch.optim.SGD(block.parameters(), lr=0.1).step()
    block.requires_grad_(False)


@pytest.mark.parametrize("change", [in_place, new_state, new_storage, trained])
def test_changed_weights_are_noticed(linear, change):
    before = linear(X)
    change(linear)
    assert not torch.allclose(linear(X), before)
    torch.testing.assert_close(linear(X), expected(linear))


def test_other_dtype_and_copies(linear):
    twin = copy.deepcopy(linear)
    twin.weights[0].zero_()
    torch.testing.assert_close(twin(X), expected(twin))
    torch.testing.assert_close(linear(X), expected(linear))
    linear.double()
    torch.testing.assert_close(linear(X.double()), expected(linear, X.double()))


def test_facet_keeps_no_norm_of_an_old_radius():
    from tesseral.datasets.statistics import Statistics
    from tesseral.kernels.plan import GraphPlan
    from tesseral.potentials import build

    torch.manual_seed(2)
    model = build("facet", {"hidden": ((8, 4, 4, 4),), "scalars": 8}, Statistics([1], {1: 0.0}, 1.0, 1.0, 2.0, 0, 0))
    model = model.double().requires_grad_(False)
    for scales in model.layers[0].norm.parameters():
        scales.fill_(0.5)
    species, vectors = torch.zeros(2, dtype=torch.int64), torch.tensor([[0.0, 0.3, 1.0], [0.0, -0.3, -1.0]]).double()
    plan = GraphPlan.build(torch.tensor([[1, 0], [0, 1]]), torch.tensor([0, 1, 2]))
    before = model.atomic_energies(species, vectors, plan)
    kept = model._norm._value
    torch.testing.assert_close(model.atomic_energies(species, vectors, plan), before)
    assert model._norm._value is kept
    model.r_max.mul_(0.9)
    changed = model.atomic_energies(species, vectors, plan)
    assert not torch.equal(changed, before)
    torch.testing.assert_close(changed, copy.deepcopy(model).atomic_energies(species, vectors, plan))
