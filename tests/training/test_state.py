"""State as data: any nesting survives, generators come back, torch's global state is left as it was."""

import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseral.training.state import (
    TAG,
    flatten,
    random_state,
    seed_generators,
    set_random_state,
    torch_settings,
    unflatten,
)

plain = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
keys = st.text() | st.integers() | st.just(TAG)
trees = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_plain_trees_survive_json(tree):
    data, tensors = flatten(tree)
    assert tensors == {}
    assert unflatten(json.loads(json.dumps(data, allow_nan=False)), tensors) == tree


def test_tensors_stay_tensors_at_their_place():
    tree = {
        "state": {0: {"step": torch.tensor(3.0)}, 1: {"m": torch.ones(2, 2)}},
        "d": (torch.zeros(1), math.inf),
    }
    data, tensors = flatten(tree)
    back = unflatten(json.loads(json.dumps(data)), tensors)
    assert list(back["state"]) == [0, 1]
    assert torch.equal(back["state"][1]["m"], torch.ones(2, 2))
    assert isinstance(back["d"], tuple)
    assert back["d"][1] == math.inf


def test_what_needs_a_pickle_is_refused():
    with pytest.raises(TypeError, match="'/a/0' is a set"):
        flatten({"a": [{1, 2}]})


def draws():
    return random.gauss(0, 1), float(np.random.normal()), torch.randn(3).tolist()


def test_generators_continue_where_they_were():
    with torch_settings():
        seed_generators(5)
        draws()
        state = random_state()
        expected = [draws(), draws()]
        seed_generators(6)
        set_random_state(state)
        assert [draws(), draws()] == expected


def test_global_state_is_restored_even_after_an_error():
    torch.manual_seed(0)
    before = (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_rng_state())
    with pytest.raises(RuntimeError), torch_settings(threads=3, precision="tf32"):
        assert torch.get_num_threads() == 3
        assert torch.get_float32_matmul_precision() == "high"
        seed_generators(1)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        raise RuntimeError
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
