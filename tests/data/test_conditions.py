from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import FIELDS, Frame, check_fields, check_value
from latentdiff.data.datamodule import DataModule
from latentdiff.data.degradations import Blur, Degraded, Jpeg, Noise
from latentdiff.data.image_reader import ImageReader
from latentdiff.data.masks import RandomMasks
from latentdiff.data.plan import BatchPlan, SequentialPlan
from latentdiff.data.segmentation import EdgeMaps, SegmentationMaps
from latentdiff.data.shards import write_shards
from latentdiff.data.sizes import SizeAndCrop
from latentdiff.data.sources import ShapesSource, ShardSource
from latentdiff.data.stream import BatchLoader, ShardDataset
from latentdiff.data.transforms import CoverCrop
from latentdiff.shapes.renderer import segmentation
from latentdiff.shapes.scene import SHAPES, from_attributes

SIZE, CLASSES = 16, 30


class Brightness:
    def check(self, shards):
        pass

    def __call__(self, sample, frame, image, rng):
        return image.float().mean((1, 2))


def conditions():
    degraded = Degraded(
        factor=2, blur=Blur(probability=0.5), noise=Noise(probability=0.5), jpeg=Jpeg(probability=0.5, quality=(30, 90))
    )
    return {
        "mask": RandomMasks(),
        "low_res": degraded,
        "segmentation": SegmentationMaps(classes=CLASSES),
        "size": SizeAndCrop(),
        "numbers": Brightness(),
    }


def coded_sample(rng, png, height, width):
    """Patches of one class each; the red channel is 8 times the class."""
    classes = rng.integers(0, CLASSES, (height, width), dtype=np.uint8)
    pixels = np.stack([8 * classes, *rng.integers(0, 256, (2, height, width), dtype=np.uint8)], axis=2)
    return {"png": png(pixels), "seg.png": png(classes)}


@pytest.fixture
def shards(make_set, png):
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (16, 21), (40, 16), (33, 50)]
    return make_set([coded_sample(rng, png, *sizes[i % 4]) for i in range(20)], per_shard=6)


def dataset(shards, batch=6, seed=0, draw=True, **options):
    plan = BatchPlan(len(shards), batch, seed) if draw else SequentialPlan(len(shards), batch)
    transform = CoverCrop(size=SIZE, random_crop=draw, flip=draw)
    made = options.pop("conditions", conditions())
    reader = ImageReader(shards, transform=transform, seed=seed, draw=draw, conditions=made)
    return ShardDataset(shards, plan=plan, reader=reader, **options)


def joined(shards, ranks, workers, numbers):
    loaders = [BatchLoader(dataset(shards, rank=r, ranks=ranks), numbers, num_workers=workers) for r in range(ranks)]
    return [
        {name: torch.cat([getattr(part, name) for part in parts]).tolist() for name in (*FIELDS, "image")}
        for parts in zip(*loaders, strict=True)
    ]


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 0), (2, 2)])
def test_ranks_and_workers_change_nothing(shards, ranks, workers):
    assert joined(shards, ranks, workers, range(4)) == joined(shards, 1, 0, range(4))


def test_resume_anywhere_equals_the_uninterrupted_run(shards):
    whole = joined(shards, 1, 0, range(5))
    for start in range(5):
        assert joined(shards, 1, 0, range(start, 5)) == whole[start:]


def test_training_draws_anew_each_epoch_and_for_each_seed(shards):
    def masks(seed):
        data = dataset(shards, seed=seed)
        return {
            (key, number // 3): mask.numpy().tobytes()
            for number in range(6)
            for batch in [data[number]]
            for key, mask in zip(batch.keys, batch.mask)
        }

    first, other = masks(0), masks(1)
    assert first == masks(0)
    assert len(set(first.values())) == len(first) == 36
    assert not set(first.values()) & set(other.values())


def test_evaluation_draws_the_same_in_every_run(shards):
    first, second = dataset(shards, draw=False, seed=0)[1], dataset(shards, draw=False, seed=9)[1]
    regrouped = dataset(shards, draw=False, batch=9)[0].rows(6, 9)
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(getattr(first, name)[:3], getattr(regrouped, name))


def test_a_field_s_draws_do_not_depend_on_the_others(shards):
    alone = dataset(shards, conditions={"mask": RandomMasks()})[2]
    assert torch.equal(alone.mask, dataset(shards)[2].mask)
    assert alone.low_res is None
    twice = dataset(shards, conditions={"mask": RandomMasks(), "segmentation": RandomMasks()})[2]
    assert not (twice.mask == twice.segmentation).flatten(1).all(1).any()


def test_maps_follow_crop_and_mirroring(make_set, png):
    rng = np.random.default_rng(1)
    shards = make_set([coded_sample(rng, png, *shape) for shape in ((16, 16), (16, 40), (40, 16))])
    data = dataset(shards, batch=3, conditions={"segmentation": SegmentationMaps(classes=CLASSES)})
    batches = [data[number] for number in range(12)]  # cut out, not resized: the red channel is exact
    for batch in batches:
        assert torch.equal(batch.image[:, 0], 8 * batch.segmentation)
    assert len({image.numpy().tobytes() for batch in batches for image in batch.image}) > 20


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("edge", "size"), [(12, 4), (4, 12), (7, 5), (8, 8)])
def test_a_resized_map_takes_the_value_at_each_pixel_s_centre(edge, size, mirrored):
    values = np.arange(11 * 30).reshape(11, 30) if edge <= 11 else np.arange(15 * 30).reshape(15, 30)
    laid = Frame(*values.shape, 2, 5, edge, edge, mirrored, size, size).lay(values)
    square = torch.from_numpy(values[2 : 2 + edge, 5 : 5 + edge].copy())
    expected = torch.nn.functional.interpolate(square[None, None].double(), size=(size, size), mode="nearest-exact")
    assert torch.equal(laid.double(), expected[0, 0].flip(-1) if mirrored else expected[0, 0])


def test_size_and_crop_in_the_scale_of_the_result():
    value = SizeAndCrop()
    frame = Frame(50, 120, 0, 20, 50, 50, False, 25, 25)
    mirrored = Frame(50, 120, 0, 20, 50, 50, True, 25, 25)
    tall = Frame(90, 30, 60, 0, 30, 30, True, 60, 60)
    assert value(None, frame, None, None).tolist() == [50, 120, 0, 10, 25, 25]
    assert value(None, mirrored, None, None).tolist() == [50, 120, 0, 25, 25, 25]
    assert value(None, tall, None, None).tolist() == [90, 30, 120, 0, 60, 60]


def test_other_fields_are_refused(shards):
    check_fields(conditions())
    with pytest.raises(InputError, match=r"no field 'masks'; expected .* did you mean mask"):
        check_fields({"masks": RandomMasks()})
    with pytest.raises(InputError, match="no field 'image'"):
        check_fields({"image": RandomMasks()})


def test_values_of_another_kind_are_refused():
    batch_of = {"mask": (1, 8, 8), "segmentation": (8, 8), "low_res": (3, 4, 4)}
    for name, shape in batch_of.items():
        check_value(name, torch.zeros(shape, dtype=torch.uint8), 8, 8)
        with pytest.raises(InputError, match=f"'{name}' makes torch.float32"):
            check_value(name, torch.zeros(shape), 8, 8)
    with pytest.raises(InputError, match=r"'mask' makes torch.uint8 of shape \(8, 8\), expected .* \(1, 8, 8\)"):
        check_value("mask", torch.zeros(8, 8, dtype=torch.uint8), 8, 8)
    with pytest.raises(InputError, match="smaller than the image"):
        check_value("low_res", torch.zeros(3, 8, 8, dtype=torch.uint8), 8, 8)


def module(source, **options):
    given = {"image_size": SIZE, "global_batch": 4, "seed": 0, "max_batches": 3, "num_workers": 0}
    return DataModule(source=source, **{**given, **options})


@pytest.fixture
def source(tmp_path, shards):
    return ShardSource(train=str(tmp_path / "set"), val=str(tmp_path / "set"))


def test_the_data_module_delivers_the_fields_everywhere_but_for_statistics(source):
    data = module(source, conditions=conditions())
    batches = [*data.train_dataloader(), *data.val_dataloader(), data.preview(3)]
    assert len(batches) == 9
    for batch in batches:
        for name in FIELDS:
            check_value(name, getattr(batch, name)[0], SIZE, SIZE)
            assert len(getattr(batch, name)) == len(batch)
    assert torch.equal(batches[-1].mask, batches[3].mask[:3])
    assert all(getattr(batch, name) is None for batch in data.statistics_batches(8) for name in FIELDS)


def test_all_tensors_go_to_the_device(source):
    data = module(source, conditions=conditions())
    batch = data.transfer_batch_to_device(data.preview(2), torch.device("meta"), 0)
    moved = {name for name in (*FIELDS, "image", "label") if getattr(batch, name).device.type == "meta"}
    assert moved == {*FIELDS, "image", "label"}


def test_what_does_not_fit_the_images_is_found_at_setup(source):
    for wanted, message in (
        ({"low_res": Degraded(factor=3)}, "factor 3 does not divide the image size 16x16"),
        ({"mask": EdgeMaps()}, r"'mask' makes torch.uint8 of shape \(16, 16\)"),
        ({"segmentation": SegmentationMaps(classes=3)}, "holds the class"),
        ({"numbers": SizeAndCrop()}, r"makes torch.int64 of shape \(6,\), expected torch.float32 of shape \(6,\)"),
        ({"segmentations": EdgeMaps()}, "no field 'segmentations'"),
    ):
        with pytest.raises(InputError, match=message):
            module(source, conditions=wanted).setup()


def test_maps_that_are_missing_are_found_at_setup_or_unlabelled(tmp_path, png):
    rng = np.random.default_rng(0)
    content = [coded_sample(rng, png, 16, 16) for _ in range(20)]
    for i in (3, 12):
        del content[i]["seg.png"]
    write_shards(content, tmp_path / "holes")
    source = ShardSource(train=str(tmp_path / "holes"), val=str(tmp_path / "holes"))
    with pytest.raises(InputError, match=r"2 of 20 samples have no segmentation map .* 00000/000000003, 00000/0000000"):
        module(source, conditions={"segmentation": SegmentationMaps(classes=CLASSES)}).setup()
    data = module(source, conditions={"segmentation": SegmentationMaps(classes=CLASSES, require=False)})
    maps = data.preview(20).segmentation
    assert [bool((one == 255).all()) for one in maps] == [i in (3, 12) for i in range(20)]


def test_a_map_that_is_damaged_is_a_broken_sample_and_a_wrong_one_stops_the_run(make_set, png, caplog):
    rng = np.random.default_rng(0)
    content = [coded_sample(rng, png, 16, 16) for _ in range(12)]
    content[4]["seg.png"] = content[4]["seg.png"][:60]
    wanted = {"segmentation": SegmentationMaps(classes=CLASSES)}
    data = dataset(make_set(content), draw=False, batch=12, conditions=wanted)
    assert data[0].keys[4] == "00000/000000005"
    assert "skipped sample '00000/000000004'" in caplog.text
    content[4]["seg.png"] = png(np.zeros((16, 15), np.uint8))
    wrong = make_set(content, name="wrong")
    with pytest.raises(InputError, match=r"'00000/000000004' in .* is 15x16 pixels, its image 16x16"):
        dataset(wrong, draw=False, batch=12, conditions=wanted)[0]


def test_the_embedded_world_has_its_maps_and_classes(tmp_path):
    source = ShapesSource(root=str(tmp_path), image_size=32, train_samples=10, val_samples=30)
    wanted = {"segmentation": SegmentationMaps(classes=1 + len(SHAPES))}
    data = module(source, image_size=32, conditions=wanted, require_labels=True, classes=len(SHAPES))
    data.prepare_data()
    batch = data.preview(30)
    assert set(batch.segmentation.unique().tolist()) == set(range(1 + len(SHAPES)))
    for values, map_, label in zip(batch.attributes, batch.segmentation, batch.label):
        scene = from_attributes(json.loads(json.dumps(values)))
        assert np.array_equal(map_.numpy(), segmentation(scene, 32))
        assert label == scene.label
