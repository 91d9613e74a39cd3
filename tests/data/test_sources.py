from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data import sources
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ShardSource


@pytest.mark.parametrize(("count", "held"), [(10, 5), (76, 16), (1000, 50)])
def test_a_part_is_held_back_and_the_parts_are_disjoint(tmp_path, samples, count, held):
    write_shards(samples(count), tmp_path / "set")
    train, val = ShardSource(train=str(tmp_path / "set")).open()
    assert len(val) == held
    assert set(train.all_keys()).isdisjoint(val.all_keys())
    assert len(train) + len(val) == count
    again = ShardSource(train=str(tmp_path / "set")).open()
    assert [s.all_keys() for s in again] == [train.all_keys(), val.all_keys()]


def test_what_is_held_back_does_not_depend_on_where_the_shards_lie(tmp_path, samples):
    for name in ("a", "b"):
        write_shards(samples(40), tmp_path / "one" / name, 5)
    shutil.copytree(tmp_path / "one" / "a", tmp_path / "elsewhere" / "x")
    both = [str(tmp_path / "one" / name) for name in "ab"]
    apart = [str(tmp_path / "elsewhere" / "x"), both[1]]

    def held(train):
        """'shard/key' of each."""
        keys = ShardSource(train=train, held_back=0.4).open()[1].all_keys()
        return ["/".join(key.split("/")[-2:]) for key in keys]

    assert held(both) == held(apart) == 2 * held(both[0])
    assert len(held(both)) == 32


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_smallest_hashes_are_held_back(make_set, samples, monkeypatch, chunk):
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    shards = make_set([{**sample, "__key__": f"\u00e9/{i}"} for i, sample in enumerate(samples(60))], 9)
    shards = shards.select(np.random.default_rng(0).permutation(60))
    keys = shards.all_keys()  # of one folder: shard's name and key
    hashes = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    expected = sorted(range(60), key=hashes.__getitem__)[:16]
    train, held = sources.split_by_key(shards, 0.05)
    assert held.all_keys() == [keys[i] for i in sorted(expected)]
    assert sorted(train.all_keys() + held.all_keys()) == sorted(keys)


def test_named_validation_shards_are_used_whole(tmp_path, samples, caplog):
    for name, count in (("train", 20), ("val", 6)):
        write_shards(samples(count), tmp_path / name)
    paths = str(tmp_path / "train"), str(tmp_path / "val")
    train, val = ShardSource(train=paths[0], val=paths[1]).open()
    assert (len(train), len(val)) == (20, 6)
    assert not caplog.text
    ShardSource(train=list(paths), val=paths[1]).open()
    assert "in both data.train and data.val" in caplog.text


def test_one_sample_cannot_be_split(tmp_path, samples):
    write_shards(samples(1), tmp_path / "set")
    with pytest.raises(InputError, match="cannot be split"):
        ShardSource(train=str(tmp_path / "set")).open()
