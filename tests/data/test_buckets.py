from __future__ import annotations

import numpy as np
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.data.buckets import AspectBuckets, BucketPlan, assign, checked_sizes
from latentdiff.data.conditions import check_value
from latentdiff.data.datamodule import DataModule
from latentdiff.data.degradations import Degraded
from latentdiff.data.index import INDEX_NAME
from latentdiff.data.masks import RandomMasks
from latentdiff.data.plan import EpochOrder
from latentdiff.data.segmentation import SegmentationMaps
from latentdiff.data.shards import write_shards
from latentdiff.data.sizes import SizeAndCrop
from latentdiff.data.sources import ShardSource

SIZES = [(16, 16), (12, 20), (20, 12)]
SHAPES = [(18, 17), (30, 50), (24, 13), (16, 16), (12, 21)]


def test_sizes_of_about_an_area():
    assert AspectBuckets(area=512**2).sizes == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    large = AspectBuckets(area=1024**2, max_aspect=4.0).sizes
    common = {(1024, 1024), (896, 1152), (832, 1216), (768, 1344), (640, 1536), (512, 2048)}  # of SDXL's list
    assert common | {(w, h) for h, w in common} <= set(large)
    for height, width in large:
        assert height % 64 == width % 64 == 0
        assert 0.9 * 1024**2 < height * width <= 1024**2
        assert max(height, width) <= 4 * min(height, width)
        assert (width, height) in large
    assert len({h / w for h, w in large}) == len(large)


@pytest.mark.parametrize("given", [{"area": 63**2}, {"area": 64**2, "max_aspect": 0.9}, {"area": 9, "multiple": 0}])
def test_senseless_areas_are_refused(given):
    with pytest.raises(InputError, match=r"data\.buckets: expected area"):
        AspectBuckets(**given)


@pytest.mark.parametrize("given", [[], [[64]], [[64, 0]], [[64, 64.0]], [[64, 64], [32, 32]]])
def test_senseless_sizes_are_refused(given):
    with pytest.raises(InputError, match=r"data\.buckets: "):
        checked_sizes(given)


def test_an_image_goes_to_the_nearest_aspect_ratio():
    rng = np.random.default_rng(0)
    images, sizes = rng.integers(1, 2000, (500, 2)), AspectBuckets(area=512**2, max_aspect=4.0).sizes
    ratio = np.log([h / w for h, w in sizes])
    nearest = np.abs(np.log(images[:, 0] / images[:, 1])[:, None] - ratio).argmin(1)
    assert assign(images, sizes, 1).tolist() == nearest.tolist()
    assert assign(images, sizes[::-1], 1).tolist() == (len(sizes) - 1 - nearest).tolist()
    assert sizes[assign(np.zeros((1, 2), int), sizes, 1)[0]] == (512, 512)


def test_a_bucket_that_fills_no_batch_is_closed(caplog):
    images = np.array([[10, 10]] * 8 + [[10, 20]] * 3 + [[10, 40]] * 2 + [[20, 10]] * 6)
    sizes = [(8, 32), (8, 16), (8, 8), (16, 8), (32, 8)]
    assert assign(images, sizes, 5).tolist() == [2] * 8 + [1] * 5 + [3] * 6
    assert "bucket 8x32 has 2 usable samples, fewer than a batch" in caplog.text
    assert "32x8" not in caplog.text
    assert set(assign(images, sizes, 19)) == {2}
    with pytest.raises(InputError, match="19 usable samples are fewer than one batch"):
        assign(images, sizes, 20)


def test_samples_known_to_be_lost_fill_no_bucket(caplog):
    images, sizes = np.array([[10, 10]] * 8 + [[10, 20]] * 8), [(8, 16), (8, 8)]
    usable = np.array([True] * 8 + [False] * 5 + [True] * 3)
    assert assign(images, sizes, 5).tolist() == [1] * 8 + [0] * 8
    assert assign(images, sizes, 5, usable).tolist() == [1] * 16
    assert "bucket 8x16 has 3 usable samples" in caplog.text
    with pytest.raises(InputError, match="11 usable samples are fewer than one batch"):
        assign(images, sizes, 12, usable)


def walked(order, bucket_of, batch):
    """By the definition: each batch when it is complete."""
    waiting, batches = {}, []
    for sample in order:
        waiting.setdefault(bucket_of[sample], []).append(sample)
        if len(waiting[bucket_of[sample]]) == batch:
            batches.append(waiting.pop(bucket_of[sample]))
    return batches


@pytest.mark.parametrize("window", [30, 1000])
def test_batches_come_when_their_bucket_is_full(window):
    bucket_of = np.random.default_rng(1).choice([0, 2, 3], 200, p=[0.6, 0.3, 0.1]).astype(np.uint16)
    shard_of = (np.arange(200) // 20).astype(np.int32)
    plan = BucketPlan(bucket_of, 8, 5, shard_of=shard_of, window=window)
    order = EpochOrder(200, 5, shard_of=shard_of, window=window)
    expected = [batch for epoch in range(3) for batch in walked(order(epoch), bucket_of, 8)]
    found = [[plan.index(slot) for slot in plan.slots(number)] for number in range(3 * plan.batches_per_epoch)]
    assert found == expected
    assert len(expected) == 3 * plan.batches_per_epoch == 3 * (200 - plan.left_out) // 8
    assert plan.left_out == sum(np.bincount(bucket_of) % 8)
    again = BucketPlan(bucket_of, 8, 5, shard_of=shard_of, window=window)
    assert [again.index(slot) for slot in again.slots(17)] == found[17]


def test_a_replacement_stays_in_its_bucket():
    bucket_of = np.array([0, 1] * 10, dtype=np.uint16)
    plan = BucketPlan(bucket_of, 4, 0, shard_of=np.zeros(20, np.int32))
    slot = plan.slots(1)[2]
    others = {plan.index(type(slot)(slot.epoch, slot.place + step, slot.part)) for step in range(20)}
    assert others == set(np.flatnonzero(bucket_of == slot.part))


@pytest.fixture
def source(tmp_path, png):
    """Images of five shapes whose channels tell row, column and sample, with maps; validation squares too."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(60):
        classes = rng.integers(0, 30, SHAPES[i % 5], dtype=np.uint8)
        pixels = np.stack([8 * classes, *rng.integers(0, 256, (2, *classes.shape), dtype=np.uint8)], axis=2)
        samples.append({"png": png(pixels), "seg.png": png(classes), "txt": f"sample {i}", "cls": i})
    write_shards(samples, tmp_path / "set", 13)
    return ShardSource(train=str(tmp_path / "set"), val=str(tmp_path / "set"))


def build(source, **options):
    given = {"image_size": 16, "global_batch": 6, "seed": 0, "max_batches": 12, "num_workers": 0, "buckets": SIZES}
    return DataModule(source=source, **{**given, **options})


def conditions():
    return {
        "mask": RandomMasks(),
        "low_res": Degraded(factor=2),
        "segmentation": SegmentationMaps(classes=30),
        "size": SizeAndCrop(),
    }


def test_every_batch_is_of_one_bucket_the_same_on_every_rank(source, monkeypatch):
    whole = list(build(source, random_crop=True, conditions=conditions()).train_dataloader())
    assert {tuple(batch.image.shape[2:]) for batch in whole} == set(SIZES)
    for batch in whole:
        height, width = batch.image.shape[2:]
        for name in conditions():
            check_value(name, getattr(batch, name)[0], height, width)
        assert batch.size[:, 4:].tolist() == [[height, width]] * 6
        ratio = [SHAPES[i % 5][0] / SHAPES[i % 5][1] for i in batch.label.tolist()]
        assert all(abs(np.log(r * width / height)) <= abs(np.log(r * w / h)) for r in ratio for h, w in SIZES)
    for ranks, workers in ((2, 0), (3, 2)):
        parts = []
        for rank in range(ranks):
            data = build(source, random_crop=True, conditions=conditions(), num_workers=workers)
            monkeypatch.setattr(data, "_rank_and_ranks", lambda rank=rank, ranks=ranks: (rank, ranks))
            parts.append(list(data.train_dataloader()))
        for batch, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(batch.image, torch.cat([piece.image for piece in pieces]))
            assert torch.equal(batch.mask, torch.cat([piece.mask for piece in pieces]))


def test_validation_statistics_and_pictures_stay_squares(source):
    data = build(source, conditions=conditions())
    shapes = {tuple(batch.image.shape[2:]) for batch in [*data.val_dataloader(), *data.statistics_batches(9)]}
    assert shapes == {(16, 16)} == {tuple(data.preview(3).image.shape[2:])}


def test_what_buckets_need_is_said(source, tmp_path):
    for options, message in (
        (
            {"conditions": {"low_res": Degraded(factor=5)}, "image_size": 20, "buckets": [(20, 20), (12, 20)]},
            "20x20|12x20",
        ),
        ({"global_batch": 64}, "60 usable samples are fewer than one batch"),
    ):
        with pytest.raises(InputError, match=message):
            build(source, **options).setup()
    build(source, global_batch=64).val_dataloader()  # evaluation needs no buckets
    weighted = ShardSource(train=[str(tmp_path / "set")], val=str(tmp_path / "set"), weights=[1])
    with pytest.raises(InputError, match=r"cannot be used with data\.weights"):
        build(weighted).setup()
    (tmp_path / "set" / INDEX_NAME).unlink()
    with pytest.raises(InputError, match=r"data\.buckets: the sizes .* 'latentdiff shards index .*set'"):
        build(source).setup()
