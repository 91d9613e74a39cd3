from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data import damage, preparation
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ShardSource
from latentdiff.data.verified import Verified


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """Names of the shards that are hashed, in a user's cache of its own."""
    monkeypatch.setenv("LATENTDIFF_CACHE", str(tmp_path / "user"))
    names = []
    hash_file = damage.sha256_of

    def watched(path):
        names.append(os.path.basename(path))
        time.sleep(0.01)
        return hash_file(path)

    monkeypatch.setattr(damage, "sha256_of", watched)
    return names


def flip(path, place=540):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_shards_are_read_through_once_and_again_when_touched(tmp_path, samples, hashed):
    for name in ("train", "val"):
        write_shards(samples(4), tmp_path / name, 2)
    source = ShardSource(train=str(tmp_path / "train"), val=str(tmp_path / "val"))
    for _ in range(2):
        source.prepare()
        assert sorted(hashed) == ["00000.tar", "00000.tar", "00001.tar", "00001.tar"]
    os.utime(tmp_path / "val" / "00001.tar")
    source.prepare()
    assert hashed[4:] == ["00001.tar"]
    (tmp_path / "user" / "verified.json").write_text("damaged")
    source.prepare()
    assert len(hashed) == 9


def test_a_flipped_byte_is_found_before_training(tmp_path, samples, hashed):
    write_shards(samples(4), tmp_path / "set", 2)
    source = ShardSource(train=str(tmp_path / "set"))
    source.prepare()
    flip(tmp_path / "set" / "00001.tar")
    with pytest.raises(InputError, match=r"data\.train: .*00001\.tar has the sha256 .*; 1 of 2 samples are whole"):
        source.prepare()
    with pytest.raises(InputError):  # damaged shards are not remembered
        source.prepare()
    ShardSource(train=str(tmp_path / "set"), damaged="skip").prepare()


def test_of_several_processes_one_reads(tmp_path, samples, hashed):
    write_shards(samples(6), tmp_path / "set", 2)
    with ThreadPoolExecutor(4) as pool:  # a lock of files keeps threads apart like processes
        list(pool.map(lambda _: ShardSource(train=str(tmp_path / "set")).prepare(), range(4)))
    assert sorted(hashed) == ["00000.tar", "00001.tar", "00002.tar"]


def test_a_large_set_is_left_to_the_check_of_each_read(tmp_path, samples, hashed, monkeypatch, caplog):
    write_shards(samples(2), tmp_path / "set")
    monkeypatch.setattr(preparation, "MOST_VERIFIED", 100)
    flip(tmp_path / "set" / "00000.tar")
    with caplog.at_level("INFO"):
        ShardSource(train=str(tmp_path / "set")).prepare()
    assert hashed == []
    assert "each read is checked by its crc32" in caplog.text


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path, samples, hashed):
    write_shards(samples(2), tmp_path / "set")
    (tmp_path / "user").write_text("a file where the folder should be")
    source = ShardSource(train=str(tmp_path / "set"))
    for count in (1, 2):
        source.prepare()
        assert len(hashed) == count


def test_the_memory_knows_a_file_by_its_state_and_forgets_those_that_are_gone(tmp_path):
    path, store = tmp_path / "x", tmp_path / "verified.json"
    path.write_bytes(b"content")
    first = Verified(store)
    first.add(str(path), "a" * 64)
    first.save()
    assert Verified(store).knows(str(path), "a" * 64)
    assert not Verified(store).knows(str(path), "b" * 64)
    replacement = tmp_path / "y"
    replacement.write_bytes(b"CONTENT")
    os.utime(replacement, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(replacement, path)  # same size and time: another inode
    assert not Verified(store).knows(str(path), "a" * 64)
    path.unlink()
    (tmp_path / "z").write_bytes(b"")
    second = Verified(store)
    second.add(str(tmp_path / "z"), "c" * 64)
    second.save()
    assert list(json.loads(store.read_text())) == [str(tmp_path / "z")]
