from __future__ import annotations

import logging
import multiprocessing
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.image_reader import ImageReader
from latentdiff.data.plan import BatchPlan, SequentialPlan
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.stream import BatchLoader, ReadCounts, ShardDataset
from latentdiff.data.transforms import CoverCrop

READING = ("require_captions", "labels", "conditions", "max_pixels", "with_attributes", "draw")


def dataset(shards, batch=8, seed=0, **options):
    transform = CoverCrop(size=8, random_crop=True, flip=True)
    reading = {name: options.pop(name) for name in READING if name in options}
    reader = ImageReader(shards, transform=transform, seed=seed, **reading)
    return ShardDataset(shards, plan=BatchPlan(len(shards), batch, seed), reader=reader, **options)


def fixed(shards, plan, **reading):
    reader = ImageReader(shards, transform=CoverCrop(size=8), seed=5, draw=False, **reading)
    return ShardDataset(shards, plan=plan, reader=reader)


def joined(shards, ranks, workers, numbers):
    """Global batches put together from the parts of all ranks: (keys, captions, labels, images) of each."""
    loaders = [BatchLoader(dataset(shards, rank=r, ranks=ranks), numbers, num_workers=workers) for r in range(ranks)]
    batches = []
    for parts in zip(*loaders, strict=True):
        assert [p.start for p in parts] == [r * 8 // ranks for r in range(ranks)]
        assert {(p.number, p.global_size) for p in parts} == {(parts[0].number, 8)}
        batches.append(
            (
                [k for p in parts for k in p.keys],
                [c for p in parts for c in p.caption],
                torch.cat([p.label for p in parts]).tolist(),
                torch.cat([p.image for p in parts]).tolist(),
            )
        )
    return batches


@pytest.fixture
def shards(make_set, png):
    rng = np.random.default_rng(0)
    return make_set(
        [
            {
                "png": png(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)),
                "json": {"captions": [f"{i} {w}" for w in "abc"]},
                "cls": i,
            }
            for i in range(30)
        ],
        per_shard=7,
    )


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (4, 0), (1, 2), (2, 2)])
def test_ranks_and_workers_change_nothing(shards, ranks, workers):
    assert joined(shards, ranks, workers, range(7)) == joined(shards, 1, 0, range(7))


def test_resume_anywhere_equals_the_uninterrupted_run(shards):
    whole = joined(shards, 1, 0, range(9))
    for start in range(9):
        assert joined(shards, 1, 0, range(start, 9)) == whole[start:]


def test_captions_are_drawn_anew_each_epoch_and_keyed_by_the_seed(shards):
    def wordings(seed):
        return {
            (k, n // 3): c
            for n in range(30)
            for b in [dataset(shards, seed=seed)[n]]
            for k, c in zip(b.keys, b.caption)
        }

    first = wordings(0)
    assert first == wordings(0)
    assert first != wordings(1)
    assert {caption.split()[1] for caption in first.values()} == {"a", "b", "c"}
    assert len({first[k, e] for k, e in first if k.endswith("/000000003")}) > 1


def test_evaluation_takes_the_first_caption_and_the_centre(shards, png):
    plan = SequentialPlan(30, 30)
    data = fixed(shards, plan, with_attributes=True)
    batch = data[0]
    assert batch.caption == [f"{i} a" for i in range(30)]
    assert batch.label.tolist() == list(range(30))
    assert batch.attributes[4] == {"captions": ["4 a", "4 b", "4 c"]}


def test_missing_parts_have_their_defaults(make_set, png, image):
    samples = [
        {"png": png(image(1))},
        {"png": png(image(2)), "json": {"caption": "two"}},
        {"png": png(image(3)), "txt": " a\nb "},
    ]
    data = fixed(make_set(samples), SequentialPlan(3, 3))
    batch = data[0]
    assert batch.caption == ["", "two", "a b"]
    assert batch.label.tolist() == [-1, -1, -1]
    assert batch.attributes is None
    assert batch.image.dtype == torch.uint8
    assert batch.image[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_a_broken_sample_is_replaced_by_the_next_of_the_plan(make_set, samples, caplog):
    content = samples(200)
    content[17]["png"] = b"not an image"
    shards = make_set(content, per_shard=50)
    plan = BatchPlan(200, 8, 0)
    expected = [index for number in range(25) for index in plan.indices(number)]
    hole = expected.index(17)
    expected[hole] = plan.indices((hole + 1) // 8 % 25)[(hole + 1) % 8]
    for ranks in (1, 2):
        parts = [dataset(shards, rank=r, ranks=ranks) for r in range(ranks)]
        with caplog.at_level(logging.WARNING):
            labels = [label for number in range(25) for part in parts for label in part[number].label.tolist()]
        assert labels == expected
    assert "'00000/000000017' in " in caplog.text
    alone = dataset(shards)
    for number in range(25):
        alone[number]
    assert alone.counts == ReadCounts(seen=199, skipped=1, indexed=200)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_samples_stop_the_run(make_set, samples, workers):
    content = samples(100)
    for i in (3, 50, 90):
        content[i]["png"] = content[i]["png"][:40]
    shards = make_set(content)
    with pytest.raises(InputError, match=r"^2 of 100 samples are broken"):
        list(BatchLoader(dataset(shards), range(12), num_workers=workers))
    assert len(list(BatchLoader(dataset(shards, max_broken=0.03), range(12), num_workers=workers))) == 12


def test_a_sample_without_the_caption_it_must_have_is_skipped(make_set, samples, caplog):
    content = samples(8)
    content[3]["txt"] = " "
    data = dataset(make_set(content), require_captions=True)
    assert set(data[0].caption) == {f"picture {i}" for i in range(8) if i != 3}
    assert data.counts == ReadCounts(7, 1, 8)
    assert "skipped sample '00000/000000003' in " in caplog.text
    assert "it has no caption" in caplog.text


def test_workers_share_the_counts(make_set, samples):
    data = dataset(make_set(samples(16)))
    list(BatchLoader(data, range(2), num_workers=2))
    assert data.counts == ReadCounts(16, 0, 16)


def test_workers_survive_signals_from_outside_and_end_with_the_last_batch(shards):
    before = set(multiprocessing.active_children())
    loader = iter(BatchLoader(dataset(shards), range(12), num_workers=2))
    numbers = [next(loader).number]
    workers = set(multiprocessing.active_children()) - before
    for worker in workers:
        for name in ("TERM", "INT", "USR1"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    numbers += [next(loader).number for _ in range(11)]
    assert numbers == list(range(12))
    assert len(workers) == 2
    assert [worker.exitcode for worker in workers] == [0, 0]


def known_broken(shards, indices):
    """The set as ``damaged=skip`` opens it when these samples' shard has gone."""
    lost = np.zeros(len(shards.table), dtype=bool)
    lost[indices] = True
    return ShardSet(shards.table, shards.files, lost=lost)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 2)])
def test_one_shard_is_split_over_ranks_and_workers(make_set, samples, ranks, workers):
    shards = make_set(samples(48))
    assert len(shards.table.paths) == 1
    for epoch in range(2):
        numbers = range(6 * epoch, 6 * epoch + 6)
        keys = [key for batch in joined(shards, ranks, workers, numbers) for key in batch[0]]
        assert sorted(keys) == sorted(shards.all_keys())


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 2)])
def test_over_all_ranks_and_workers_seen_and_skipped_are_all_samples(make_set, samples, ranks, workers):
    content = samples(200)
    for i in (7, 77, 177):
        content[i]["png"] = b"no picture"
    shards = known_broken(make_set(content, per_shard=20), range(40, 60))
    sets = [dataset(shards, rank=rank, ranks=ranks, max_broken=0.2) for rank in range(ranks)]
    seen = set()
    for data in sets:
        for batch in BatchLoader(data, range(25), num_workers=workers):
            seen |= set(batch.keys)
    assert len(seen) == 177
    status = torch.stack([data.status for data in sets]).amax(0)
    assert ReadCounts.of(status) == ReadCounts(seen=177, skipped=23, indexed=200)


def test_samples_known_to_be_broken_are_replaced_without_being_read(make_set, samples, monkeypatch):
    shards = known_broken(make_set(samples(40)), [3, 4, 5])
    asked = []
    data = dataset(shards, max_broken=0.1)
    monkeypatch.setattr(
        data.reader, "read", lambda epoch, index, read=data.reader.read: asked.append(index) or read(epoch, index)
    )
    for number in range(5):
        data[number]
    assert data.counts == ReadCounts(37, 3, 40)
    assert len(asked) == 40
    assert not {3, 4, 5} & set(asked)


def test_too_many_samples_known_to_be_broken_stop_the_run_at_its_start(make_set, samples):
    shards = make_set(samples(40))
    dataset(known_broken(shards, [3]))
    with pytest.raises(
        InputError, match=r"^3 of 40 samples are broken, more than data\.module\.max_broken=0\.01 allows; the warnings"
    ):
        dataset(known_broken(shards, [3, 4, 5]))


def broken_after(shards, limit, **options):
    """(samples read, broken samples found) when a run of which all samples from ``limit`` on are broken stops."""
    data = dataset(shards, batch=100, **options)

    def read(epoch, index):
        if index >= limit:
            raise BrokenSampleError("no picture")
        return index

    data.reader = SimpleNamespace(read=read, collate=lambda rows: {})
    with pytest.raises(InputError, match=r"samples.* are broken, more than data") as stopped:
        list(BatchLoader(data, range(400)))
    return data.counts.skipped - int(shards.broken().sum()), str(stopped.value)


def indexed(count, known=()):
    """A set without bytes."""
    lost = np.zeros(count, dtype=bool)
    lost[list(known)] = True
    table = SimpleNamespace(paths=["x.tar"], first=np.array([0, count]), shard=lambda row: 0, key=str)
    return ShardSet(table, None, lost=lost, rows=np.arange(count))


def test_every_rank_stops_at_the_share_of_what_it_tries():
    assert broken_after(indexed(20_000), 0)[0] == 201  # alone: the share of the whole set
    assert broken_after(indexed(20_000, known=range(150)), 0)[0] == 51  # the known ones are of it
    found, message = broken_after(indexed(20_000), 10_000, rank=3, ranks=10)
    assert found == 21
    assert message.startswith("21 of 2000 samples of rank 3 are broken")
    assert broken_after(indexed(20_000, known=range(150)), 10_000, rank=3, ranks=10)[0] == 6
    assert broken_after(indexed(20_000), 10_000, rank=3, ranks=100)[0] == 11  # as if it tried 1000


def test_when_nothing_can_be_read_the_last_fault_is_named(make_set, samples):
    data = dataset(make_set([{**sample, "png": b"no picture"} for sample in samples(3)]), max_broken=1.0)
    with pytest.raises(InputError, match=r"can be read; the last was '00000/00000000\d' in .*set.*: neither a JPEG"):
        data[0]
    with pytest.raises(InputError, match=r"can be read; the warnings above say why"):
        dataset(known_broken(make_set(samples(2), name="lost"), [0, 1]), max_broken=1.0)[0]
