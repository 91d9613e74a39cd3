from dataclasses import replace

import numpy as np
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.semantic_iou import CLASSES, SemanticIou
from latentdiff.shapes import checker
from latentdiff.types import UNLABELLED, Batch


def test_real_scenes_lie_where_their_maps_say_and_others_do_not(scenes, measured):
    result = measured(SemanticIou(), cuts=(20, 21))
    assert set(result["iou"]) == set(CLASSES)
    assert result["miou"] >= 0.97
    assert result["pixel_accuracy"] >= 0.995
    assert result["shuffled"]["miou"] < 0.3
    assert result == measured(SemanticIou())


def reader(monkeypatch, *objects):
    """The checker reads these (shape, mask) off every image."""

    def read(images):
        found = [checker.ReadObject(s, "red", "small", "left", (0, 0), 1.0, 1.0, mask) for s, mask in objects]
        return [checker.Reading("black", tuple(found))] * len(images)

    monkeypatch.setattr("latentdiff.metrics.semantic_iou.checker.read", read)


def area(rows, columns):
    mask = np.zeros((64, 64), bool)
    mask[rows, columns] = True
    return mask


def test_known_overlaps(monkeypatch, measured):
    """A circle read in rows 0 to 31 where the map has one in rows 16 to 47: thirds, over both images together."""
    reader(monkeypatch, ("circle", area(slice(0, 32), slice(None))))
    maps = torch.zeros(2, 64, 64, dtype=torch.uint8)
    maps[0, 16:48] = 1 + CLASSES[1:].index("circle")
    batch = Batch(["a", "b"], segmentation=maps, attributes=[{"objects": []}] * 2)
    result = measured(SemanticIou(), torch.zeros(2, 3, 64, 64, dtype=torch.uint8), batch)
    # circle: 16 rows in common, the first image's union 48 rows, the second's 32; background: 16 and 32 of 48 and 64
    assert result["iou"] == {"background": pytest.approx(48 / 112), "circle": pytest.approx(16 / 80)}
    assert result["miou"] == pytest.approx((48 / 112 + 16 / 80) / 2)
    assert result["pixel_accuracy"] == pytest.approx(0.5)


def test_unlabelled_pixels_do_not_count_and_maps_of_other_sizes_do(monkeypatch, measured):
    reader(monkeypatch, ("star", area(slice(0, 32), slice(None))))
    maps = torch.full((1, 128, 128), UNLABELLED, dtype=torch.uint8)
    maps[:, :64] = 1 + CLASSES[1:].index("star")
    batch = Batch(["a"], segmentation=maps, attributes=[{"objects": []}])
    assert measured(SemanticIou(), torch.zeros(1, 3, 128, 128, dtype=torch.uint8), batch)["iou"] == {"star": 1.0}


def test_classes_are_named_in_any_order(monkeypatch, measured):
    reader(monkeypatch, ("ring", area(slice(0, 32), slice(None))))
    classes = ("ring", "sky", *[name for name in CLASSES if name != "ring"])
    maps = torch.full((1, 64, 64), 2, dtype=torch.uint8)
    maps[:, :32] = 0
    metric = SemanticIou(classes=classes)
    batch = Batch(["a"], segmentation=maps, attributes=[{"objects": []}])
    result = measured(metric, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), batch)
    assert result["iou"] == {"ring": 1.0, "background": 1.0}
    assert metric.describe() == {"classes": list(classes)}


def test_refusals(scenes):
    with pytest.raises(InputError, match="'ring' is not in"):
        SemanticIou(classes=CLASSES[:-1])
    with pytest.raises(InputError, match="needs the maps"):
        SemanticIou().check(replace(scenes, segmentation=None))
    with pytest.raises(InputError, match="embedded world"):
        SemanticIou().check(replace(scenes, attributes=None))
    with pytest.raises(InputError, match="value 9, but 7 classes"):
        SemanticIou().measure(
            scenes.image[:2], replace(scenes.rows(0, 2), segmentation=torch.full((2, 64, 64), 9).byte())
        )
