from __future__ import annotations

import numpy as np
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.mixing import MixedPlan, Mixture
from latentdiff.data.plan import rank_slice
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ShardSource


def plan(sizes, weights, batch, seed=0, **options):
    source_of = np.repeat(np.arange(len(sizes)), sizes)
    shard_of = (np.arange(len(source_of)) // 10).astype(np.int32)
    return MixedPlan(Mixture(source_of, weights), batch, seed, shard_of=shard_of, **options), source_of


def drawn(mixed, numbers):
    return np.array([[mixed.index(slot) for slot in mixed.slots(number)] for number in numbers])


@pytest.mark.parametrize("weights", [[0.7, 0.3], [7, 3], [1, 2, 1], [0.999, 0.001]])
def test_shares_are_exact_over_a_cycle_and_near_within_it(weights):
    mixed, source_of = plan([30] * len(weights), weights, batch=50)
    found = source_of[drawn(mixed, range(200))]
    wanted = np.array(weights) / sum(weights)
    whole = np.array([(found == s).sum() for s in range(len(weights))])
    assert np.abs(whole - 10_000 * wanted).max() <= 0.5
    so_far = np.stack([(found == s).sum(1).cumsum() for s in range(len(weights))], axis=1)
    assert np.abs(so_far - np.arange(50, 10_001, 50)[:, None] * wanted).max() <= len(weights)


def test_each_source_has_epochs_of_its_own():
    mixed, source_of = plan([20, 60], [1, 1], batch=16)
    stream = drawn(mixed, range(60)).ravel()
    for source, size in enumerate((20, 60)):
        slots = sorted(
            (slot.epoch, slot.place, mixed.index(slot))
            for n in range(60)
            for slot in mixed.slots(n)
            if slot.part == source
        )
        assert [slot[:2] for slot in slots] == [divmod(i, size) for i in range(len(slots))]
        members = np.flatnonzero(source_of == source)
        for epoch in range(len(slots) // size):
            assert sorted(s for e, _, s in slots if e == epoch) == members.tolist()
    assert np.bincount(stream[source_of[stream] == 0]).max() == 24


def test_batches_depend_on_their_number_and_the_seed_alone_and_every_rank_has_the_mixture():
    mixed, source_of = plan([50, 50], [1, 3], batch=64)
    forward, backward = drawn(mixed, range(12)), drawn(plan([50, 50], [1, 3], batch=64)[0], reversed(range(12)))
    assert np.array_equal(forward, backward[::-1])
    assert not np.array_equal(forward, drawn(plan([50, 50], [1, 3], batch=64, seed=1)[0], range(12)))
    for rank in range(4):
        parts = source_of[forward[:, rank_slice(64, rank, 4)]]
        assert abs((parts == 0).mean() - 0.25) < 0.1
    assert len({tuple(row) for row in source_of[forward]}) == 12


def test_a_replacement_stays_in_its_source():
    mixed, source_of = plan([5, 40], [1, 1], batch=8)
    for slot in mixed.slots(3):
        others = {mixed.index(type(slot)(slot.epoch, slot.place + step, slot.part)) for step in range(40)}
        assert others == set(np.flatnonzero(source_of == slot.part))


def test_entries_of_data_train_are_sources(tmp_path, samples):
    for name, count in (("a", 25), ("b", 14)):
        write_shards(samples(count), tmp_path / name, 5)
    entries = [str(tmp_path / "a" / "{00000..00002}.tar"), str(tmp_path / "b"), str(tmp_path / "a" / "0000[34].tar")]
    source = ShardSource(train=entries, val=str(tmp_path / "b"), weights=[1, 2, 3])
    train, _ = source.open()
    mixture = source.mixture(train)
    assert mixture.source_of.tolist() == [0] * 15 + [1] * 14 + [2] * 10
    assert [key[0] for key in train.all_keys()] == ["a"] * 15 + ["b"] * 14 + ["a"] * 10


def test_senseless_weights_are_refused(tmp_path, samples):
    write_shards(samples(4), tmp_path / "a")
    for train, weights in ((str(tmp_path / "a"), [1.0]), ([str(tmp_path / "a")], [1.0, 2.0])):
        with pytest.raises(InputError, match=r"a number per entry of the list data\.train"):
            ShardSource(train=train, weights=weights)
    for weights in ([1, 0], [1, -1], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(InputError, match="expected numbers above 0"):
            Mixture(np.array([0, 1]), weights)
    with pytest.raises(InputError, match=r"entry 2 of the 2 of data\.train has no usable samples left"):
        Mixture(np.array([0, 0]), [1, 1])


def test_an_entry_whose_samples_are_all_lost_is_refused(tmp_path, samples):
    for name in "ab":
        write_shards(samples(4), tmp_path / name)
    (tmp_path / "a" / "00000.tar").unlink()
    entries = [str(tmp_path / name) for name in "ab"]
    source = ShardSource(train=entries, val=entries[1], weights=[1, 2], damaged="skip")
    with pytest.raises(InputError, match=r"entry 1 of the 2 of data\.train has no usable samples left"):
        source.mixture(source.open()[0])
