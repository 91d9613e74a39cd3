from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from latentdiff.data.plan import BatchPlan, EpochOrder, LastEpochs, SequentialPlan, draw_int, draw_uniform, rank_slice


def stream_of(plan, numbers):
    return list(chain.from_iterable(map(plan.indices, numbers)))


def test_an_epoch_holds_every_sample_once():
    plan = BatchPlan(48, 8, seed=1)
    epochs = [stream_of(plan, range(6 * e, 6 * e + 6)) for e in range(3)]
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_incomplete_batch_is_left_out():
    plan = BatchPlan(50, 8, seed=1)
    assert plan.batches_per_epoch == 6
    left_out = [set(range(50)) - set(stream_of(plan, range(6 * e, 6 * e + 6))) for e in range(2)]
    assert [len(samples) for samples in left_out] == [2, 2]
    assert left_out[0] != left_out[1]


@pytest.mark.parametrize(("samples", "batch"), [(76, 128), (3, 8), (1, 4)])
def test_a_small_set_fills_batches_across_epochs(samples, batch):
    plan = BatchPlan(samples, batch, seed=0)
    stream = stream_of(plan, range(samples))
    assert len(stream) == samples * batch
    for epoch in range(batch):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_order_depends_on_the_seed_and_on_nothing_seen_before():
    forward, backward = BatchPlan(40, 4, seed=3), BatchPlan(40, 4, seed=3)
    numbers = range(25)
    assert [forward.indices(n) for n in numbers] == [backward.indices(n) for n in reversed(numbers)][::-1]
    assert BatchPlan(40, 4, seed=4).indices(0) != forward.indices(0)


@pytest.mark.parametrize(
    ("samples", "batch", "ranks"), [(10, 4, 2), (9, 4, 2), (9, 2, 2), (5, 8, 4), (16, 8, 8), (17, 8, 8)]
)
def test_evaluation_sees_every_sample_once_and_no_rank_is_idle(samples, batch, ranks):
    plan = SequentialPlan(samples, batch, ranks)
    seen = []
    for number in range(plan.num_batches):
        slots = plan.slots(number)
        parts = [slots[rank_slice(len(slots), rank, ranks)] for rank in range(ranks)]
        assert min(len(part) for part in parts) >= 1
        seen += [plan.index(slot) for part in parts for slot in part]
    assert seen == list(range(samples))


def test_draws_are_fixed_for_all_time_and_uniform():
    assert draw_uniform(0, 1, 2, 3) == 0.9193085208992177  # by coreutils: b2sum -l 64 of the packed key
    values = [draw_uniform(5, i) for i in range(4000)]
    assert sum(values) / 4000 == pytest.approx(0.5, abs=3 * (1 / 12 / 4000) ** 0.5)
    assert 0 <= min(values) < 0.002
    assert 0.998 < max(values) < 1


def shards_of(count, per_shard):
    return (np.arange(count) // per_shard).astype(np.int32)


def test_a_window_over_the_whole_set_is_the_plain_permutation():
    """The order of runs from before there was a window."""
    generator = torch.Generator().manual_seed(draw_int(5, 3))
    expected = torch.randperm(1000, generator=generator).tolist()
    for window in (1000, 65_536):
        assert EpochOrder(1000, 5, shard_of=shards_of(1000, 50), window=window)(3).tolist() == expected


@pytest.mark.parametrize(("window", "per_shard"), [(1, 10), (100, 50), (400, 100), (999, 50)])
def test_a_bounded_shuffle_moves_no_sample_by_a_window(window, per_shard):
    order = EpochOrder(1000, 5, shard_of=shards_of(1000, per_shard), window=window)
    unmoved = EpochOrder(1000, 5, shard_of=shards_of(1000, per_shard), window=1)
    for epoch in range(3):
        by_shard, found = unmoved(epoch), order(epoch)
        assert sorted(found) == list(range(1000))
        place = np.empty(1000, int)
        place[by_shard] = np.arange(1000)
        moved = np.abs(place[found] - np.arange(1000))
        assert (window - 1) // 3 <= moved.max() < window
        runs = shards_of(1000, per_shard)[by_shard]
        assert (np.diff(runs) != 0).sum() == 1000 // per_shard - 1
        assert sorted(by_shard[: per_shard * 2]) != by_shard[: per_shard * 2].tolist()


def test_few_shards_are_read_at_a_time():
    shard = shards_of(20_000, 100)
    order = EpochOrder(20_000, 0, shard_of=shard, window=1000)(0)
    spread = [len(set(shard[order[start : start + 50]])) for start in range(0, 20_000, 50)]
    assert max(spread) <= 21


def test_windowed_epochs_differ_and_depend_on_the_seed_and_epoch_alone():
    def order(seed, epoch):
        return tuple(EpochOrder(300, seed, shard_of=shards_of(300, 20), window=40)(epoch))

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    assert order(2, 2) == order(2, 2)


def test_the_last_two_epochs_are_remembered():
    drawn = []
    epochs = LastEpochs(lambda epoch: drawn.append(epoch) or epoch)
    assert [epochs[e] for e in (0, 0, 1, 0, 1, 2, 1, 2, 3)] == [0, 0, 1, 0, 1, 2, 1, 2, 3]
    assert drawn == [0, 1, 2, 3]
