import numpy as np
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.caption_accuracy import CaptionAccuracy, shuffled
from latentdiff.shapes import scene
from latentdiff.shapes.renderer import render
from latentdiff.types import Batch

ATTRIBUTES = {"background", "colour", "position", "size", "shape"}


@pytest.fixture(scope="module")
def world():
    scenes = [scene.sample_scene(0, i, split="val") for i in range(60)]
    pictures = np.stack([np.asarray(render(s, 64)) for s in scenes])
    images = torch.from_numpy(pictures)
    images = images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), [scene.attributes(s) for s in scenes]


def measured(images, attributes, cuts):
    metric = CaptionAccuracy()
    for start, stop in cuts:
        keys = [str(i) for i in range(start, stop)]
        metric.update(images[start:stop], Batch(keys=keys, attributes=attributes[start:stop], start=start))
    return metric.compute()


def test_real_scenes_are_right_and_shuffled_captions_are_not(world):
    result = measured(*world, [(0, 60)])
    for group in ("one_object", "two_objects"):
        assert set(result[group]) == ATTRIBUTES
        assert min(result[group].values()) >= 0.97
        assert result["shuffled"][group]["shape"] < 0.5
        assert result["shuffled"][group]["colour"] < 0.5


def test_split_and_order_change_nothing(world):
    assert measured(*world, [(0, 60)]) == measured(*world, [(47, 60), (0, 13), (13, 47)])


def test_one_wrong_colour_of_one_scene_costs_its_share(world):
    images, attributes = world
    first = next(i for i, a in enumerate(attributes) if len(a["objects"]) == 1)
    asked = dict(attributes[first], objects=[dict(attributes[first]["objects"][0])])
    asked["objects"][0]["colour"] = "red" if asked["objects"][0]["colour"] != "red" else "blue"
    result = measured(images[first : first + 1], [asked], [(0, 1)])
    assert result["one_object"] == {"background": 1.0, "colour": 0.0, "position": 1.0, "size": 1.0, "shape": 1.0}
    assert result["two_objects"] == {}


def test_shuffling_is_a_derangement_within_counts(world):
    attributes = world[1]
    moved = shuffled(attributes)
    for count in (1, 2):
        own = [i for i, a in enumerate(attributes) if len(a["objects"]) == count]
        assert len(own) > 1
        assert all(len(moved[i]["objects"]) == count and moved[i] is not attributes[i] for i in own)
        assert {id(moved[i]) for i in own} == {id(attributes[i]) for i in own}
    alone = shuffled(attributes[:1])
    assert alone[0] is attributes[0]


def test_needs_attributes(world):
    with pytest.raises(InputError, match="data=shapes"):
        CaptionAccuracy().update(world[0][:1], Batch(keys=["a"]))
