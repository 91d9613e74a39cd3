from __future__ import annotations

import pytest

from latentdiff.config.errors import InputError
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
