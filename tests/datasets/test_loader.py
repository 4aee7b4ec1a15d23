"""Batches: limits kept, seeded order, exact resume, shares of ranks that add up, worker processes."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseral.datasets.errors import UserError
from tesseral.datasets.loader import Budget, GraphLoader, plan_batches, share_of_rank
from tesseral.datasets.store import Store, write_store
from tesseral.datasets.structure import Structure


def chains(n_frames: int = 40, seed: int = 0) -> list[Structure]:
    """Hydrogen chains of 1 to 12 atoms; the energy of frame k is k, so that frames can be told apart."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(n_frames):
        n = int(rng.integers(1, 13))
        positions = np.column_stack([0.9 * np.arange(n), np.zeros(n), rng.normal(scale=0.05, size=n)])
        labels = {"energy": np.array(float(k)), "forces": rng.normal(size=(n, 3))}
        frames.append(Structure(np.ones(n, dtype=int), positions, labels=labels))
    return frames


def loader(frames=None, **options) -> GraphLoader:
    return GraphLoader(chains() if frames is None else frames, 2.0, labels=("energy", "forces"), **options)


def labelled(graph) -> list[int]:
    return [int(e) for e, m in zip(graph.labels["energy"], graph.masks["energy"], strict=True) if m]


def epoch_of(batches) -> list[list[int]]:
    return [labelled(graph) for graph in batches]


sizes_strategy = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 900)), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(sizes_strategy, st.integers(0, 99), st.booleans(), st.sampled_from([None, 5]))
def test_every_frame_comes_once_and_no_limit_is_exceeded(sizes, seed, shuffle, batch_size):
    sizes = np.array(sizes)
    batches = plan_batches(sizes, Budget(batch_size, 60, 1000), shuffle=shuffle, seed=seed, epoch=3)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) > 0 and sizes[batch, 0].sum() <= 60 and sizes[batch, 1].sum() <= 1000
        assert batch_size is None or len(batch) <= batch_size
    if not shuffle:
        assert np.concatenate(batches).tolist() == list(range(len(sizes)))


@settings(max_examples=60, deadline=None)
@given(sizes_strategy, st.integers(1, 5))
def test_shares_of_the_ranks_add_up_and_are_even(sizes, world_size):
    sizes = np.array(sizes)
    batch = np.random.default_rng(0).permutation(len(sizes))
    shares = [share_of_rank(batch, sizes, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(sizes)))
    work = [int((sizes[s].sum(axis=1) + 1).sum()) for s in shares]
    assert max(work) - min(work) <= sizes.sum(axis=1).max() + 1


def test_order_follows_from_seed_and_epoch_alone():
    first, again, other = (loader(batch_size=8, seed=seed) for seed in (1, 1, 2))
    epochs = [epoch_of(first), epoch_of(first)]
    assert epochs == [epoch_of(again), epoch_of(again)]
    assert epochs[0] != epochs[1] and epochs[0] != epoch_of(other)
    first.set_epoch(0)
    assert epoch_of(first) == epochs[0]


@pytest.mark.parametrize("limits", [{"batch_size": 7}, {"max_atoms": 40}, {"max_edges": 90, "batch_size": 6}])
def test_a_resumed_loader_continues_exactly_where_the_state_was_taken(limits):
    straight = loader(**limits, seed=5)
    expected = epoch_of(straight) + epoch_of(straight)
    broken = loader(**limits, seed=5)
    seen: list[list[int]] = []
    while len(seen) < len(expected):
        state = json.loads(json.dumps(broken.state_dict()))
        broken = loader(**limits, seed=5)
        broken.load_state_dict(state)
        for count, graph in enumerate(broken, 1):
            seen.append(labelled(graph))
            if count == 3:
                break
    assert seen == expected


def test_an_abandoned_iteration_starts_over():
    frames = loader(batch_size=8, shuffle=False)
    next(iter(frames))
    assert epoch_of(frames)[0] == list(range(8))


def test_state_of_other_data_is_refused():
    state = loader(batch_size=8).state_dict()
    with pytest.raises(UserError, match="restore the same data, limits and seed"):
        loader(batch_size=4).load_state_dict(state)
    with pytest.raises(UserError, match="epoch 0 has 5 batches, there is no position 5"):
        loader(batch_size=8).seek(0, 5)


@pytest.mark.parametrize("limits", [{"batch_size": 9}, {"max_atoms": 25}])
def test_ranks_together_see_the_batches_of_one_process(limits):
    alone = loader(**limits, seed=3)
    ranks = [loader(**limits, seed=3, rank=r, world_size=3) for r in range(3)]
    assert len({len(r) for r in [alone, *ranks]}) == 1
    for whole, *parts in zip(epoch_of(alone), *(epoch_of(r) for r in ranks), strict=True):
        assert sorted(whole) == sorted(chain.from_iterable(parts))


def test_a_rank_without_frames_gets_a_graph_that_counts_for_nothing():
    parts = [next(iter(loader(chains(2), batch_size=4, rank=r, world_size=3))) for r in range(3)]
    assert sorted(chain.from_iterable(labelled(p) for p in parts)) == [0, 1]
    idle = next(p for p in parts if not labelled(p))
    assert idle.n_graphs == 1 and not any(mask.any() for mask in idle.masks.values())


def test_worker_processes_give_the_same_batches_and_leave_the_random_state_alone():
    direct, pooled = loader(batch_size=8), loader(batch_size=8, workers=2, cache_bytes=0)
    assert "rebuilt" in pooled.summary() and "kept in memory" in direct.summary()
    state = torch.get_rng_state()
    for _ in range(2):
        for a, b in zip(direct, pooled, strict=True):
            assert labelled(a) == labelled(b)
            torch.testing.assert_close(a.edge_vectors(), b.edge_vectors(), rtol=0, atol=0)
    assert torch.equal(state, torch.get_rng_state())


def test_cached_graphs_do_not_learn_about_autograd():
    frames = loader(chains(3), batch_size=1, shuffle=False)
    for graph in frames:
        graph.positions.requires_grad_(True)
    assert not any(graph.positions.requires_grad for graph in frames)


def test_budget_fills_batches_better_than_file_order():
    sizes = np.column_stack([np.random.default_rng(0).integers(1, 60, 3000), np.zeros(3000, dtype=int)])
    budget = Budget(max_atoms=100)
    packed, plain = (len(plan_batches(sizes, budget, shuffle=s, seed=0, epoch=0)) for s in (True, False))
    assert packed < 0.85 * plain and packed < 1.05 * sizes[:, 0].sum() / 100


def test_limits_are_checked_with_the_frame_named():
    frames = chains()
    largest = int(np.argmax([s.n_atoms for s in frames]))
    with pytest.raises(UserError, match=f"max_atoms=5 on their own, the largest is frame {largest} with 12"):
        list(loader(frames, max_atoms=5))
    with pytest.raises(UserError, match="batch_size, max_atoms or max_edges"):
        loader(frames)
    with pytest.raises(UserError, match="must be positive"):
        loader(frames, batch_size=0)
    with pytest.raises(UserError, match="no frames"):
        loader([], batch_size=1)


def test_a_bad_frame_is_named():
    frames = chains()
    frames[17].positions[0, 0] = np.nan
    with pytest.raises(UserError, match=r"frame 17.*position of atom 0 is not finite"):
        list(loader(frames, batch_size=8))


def test_worker_processes_share_a_store(tmp_path):
    write_store(tmp_path / "chains.h5", chains())
    store = Store(tmp_path / "chains.h5")
    options = {"max_atoms": 60, "seed": 4}
    pooled = loader(store, **options, workers=2, cache_bytes=0)
    assert epoch_of(pooled) == epoch_of(loader(chains(), **options))
