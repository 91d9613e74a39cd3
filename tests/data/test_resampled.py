from __future__ import annotations

import tarfile
import tempfile
from collections import Counter

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data import shard_names
from latentdiff.data.datamodule import DataModule
from latentdiff.data.image_reader import ImageReader
from latentdiff.data.index import INDEX_NAME
from latentdiff.data.resampled import ResampledDataset, ResampledShards
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ValidationSource
from latentdiff.data.stream import BatchLoader
from latentdiff.data.transforms import CoverCrop


@pytest.fixture
def folder(tmp_path, samples):
    """Ten shards of ten samples, without an index."""
    write_shards(samples(100), tmp_path / "set", 10)
    (tmp_path / "set" / INDEX_NAME).unlink()
    return tmp_path / "set"


def dataset(folder, damaged="stop", pool=4, batch=10, seed=0, **options):
    shards = ResampledShards(train=str(folder), pool=pool, damaged=damaged)
    reader = ImageReader(None, transform=CoverCrop(size=8), seed=0, require_captions=True)
    return ResampledDataset(shards, reader=reader, global_batch=batch, seed=seed, **options)


def labels(data, count):
    return [label for number in range(count) for label in data[number].label.tolist()]


def test_samples_are_drawn_evenly_and_each_agrees_with_its_caption(folder, caplog):
    data = dataset(folder)
    batches = [data[number] for number in range(300)]
    assert "drawn with replacement" in caplog.text
    counts = Counter(label for batch in batches for label in batch.label.tolist())
    assert set(counts) == set(range(100))
    assert max(counts.values()) < 2 * min(counts.values())
    for batch in batches[:20]:
        assert batch.caption == [f"picture {i}" for i in batch.label]
        assert batch.image[:, 0, 0, 0].tolist() == batch.label.tolist()
        assert [int(key.split("/")[0]) for key in batch.keys] == [i // 10 for i in batch.label]
        assert len({i // 10 for i in batch.label.tolist()}) > 1


def test_a_drawn_shard_delivers_each_sample_once(folder):
    found = labels(dataset(folder, pool=1), 40)
    for start in range(0, 400, 10):
        assert len(set(found[start : start + 10])) == 10
        assert len({i // 10 for i in found[start : start + 10]}) == 1
    assert found[:10] != sorted(found[:10])


def test_draws_depend_on_seed_start_rank_and_worker(folder):
    first = labels(dataset(folder), 3)
    assert first == labels(dataset(folder), 3)
    others = [dataset(folder, seed=1), dataset(folder, start=5), dataset(folder, batch=20, rank=1, ranks=2)]
    streams = [tuple(labels(data, 3)) for data in others]
    loader = list(BatchLoader(dataset(folder), range(6), num_workers=2))
    assert [batch.number for batch in loader] == list(range(6))
    streams += [tuple(i for batch in loader[worker::2] for i in batch.label.tolist()) for worker in (0, 1)]
    assert tuple(first) == streams[-2]
    assert len({tuple(first), *streams}) == 5


def test_ranks_have_equal_parts_of_a_global_batch(folder):
    for rank in range(3):
        batch = dataset(folder, batch=12, rank=rank, ranks=3)[4]
        assert (len(batch), batch.number, batch.start, batch.global_size) == (4, 4, 4 * rank, 12)


@pytest.mark.parametrize("cut", [0, 512 * 5, 512 * 3 + 7])
def test_a_damaged_shard_stops_or_is_left_out(folder, cut, caplog):
    data = (folder / "00003.tar").read_bytes()
    (folder / "00003.tar").write_bytes(data[:cut])
    with pytest.raises(InputError, match=r"00003\.tar is"):
        labels(dataset(folder), 100)
    found = labels(dataset(folder, damaged="skip"), 100)
    assert {i // 10 for i in found} == set(range(10)) - {3}
    assert "skipped a shard" in caplog.text
    for path in folder.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="10 shards drawn in a row are damaged"):
        labels(dataset(folder, damaged="skip"), 1)


def test_a_shard_with_a_bad_extended_header_is_left_out(folder, caplog):
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 14
    path = folder / "00003.tar"
    path.write_bytes(head.tobuf(tarfile.USTAR_FORMAT) + b"14 size=-1536\n".ljust(512, b"\0") + path.read_bytes())
    assert {i // 10 for i in labels(dataset(folder, damaged="skip"), 100)} == set(range(10)) - {3}
    assert "00003.tar is damaged: an extended header" in caplog.text


def test_remote_shards_are_fetched_when_they_are_drawn(folder, tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shard_names, "PROTOCOLS", ("file",))
    before = sorted(tmp_path.iterdir())
    near, far = dataset(folder / "{00000..00009}.tar"), dataset(f"file://{folder}/{{00000..00009}}.tar")
    assert labels(far, 10) == labels(near, 10)
    assert sorted(tmp_path.iterdir()) == before
    (folder / "00005.tar").unlink()
    with pytest.raises(InputError, match=r"file://.*00005\.tar cannot be fetched"):
        labels(far, 200)


def test_broken_samples_are_left_out_up_to_a_share(tmp_path, samples, caplog):
    content = samples(100)
    for i in range(4):
        content[20 * i]["png"] = b"no picture"
    write_shards(content, tmp_path / "set", 10)
    found = labels(dataset(tmp_path / "set", max_broken=0.2), 30)
    assert not {0, 20, 40, 60} & set(found)
    assert "skipped sample '0000" in caplog.text
    with pytest.raises(InputError, match=r"11 of \d+ samples are broken, more than data\.module\.max_broken=0\.01"):
        labels(dataset(tmp_path / "set"), 200)


def test_shards_that_are_not_there_or_settings_without_sense(folder):
    with pytest.raises(InputError, match=r"data\.train: shard .*nothing.tar does not exist"):
        dataset(folder / "nothing.tar")
    for options in ({"pool": 0}, {"damaged": "perhaps"}):
        with pytest.raises(InputError, match="expected pool of at least 1 and damaged stop or skip"):
            dataset(folder, **options)


def test_the_data_module_trains_from_them_and_validates_on_an_ordinary_set(folder, tmp_path, samples):
    write_shards(samples(12), tmp_path / "val")
    options = {"image_size": 8, "global_batch": 8, "seed": 0, "num_workers": 2}
    source, shards = ValidationSource(val=str(tmp_path / "val")), ResampledShards(train=str(folder))
    data = DataModule(source=source, resampled=shards, max_batches=5, **options)
    data.start_batch = 2
    assert [(batch.number, len(batch)) for batch in data.train_dataloader()] == [(2, 8), (3, 8), (4, 8)]
    assert [key for batch in data.val_dataloader() for key in batch.keys] == data.val_set.all_keys()
    assert sum(len(batch) for batch in data.statistics_batches(5)) == 5
    other = DataModule(source=source, resampled=ResampledShards(train=str(folder / "00000.tar")), **options)
    assert other.fingerprint() != data.fingerprint()
    with pytest.raises(InputError, match="max_batches: resampled shards have no epochs"):
        other.train_dataloader()
