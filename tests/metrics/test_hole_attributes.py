from dataclasses import replace

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.hole_attributes import HoleAttributes
from latentdiff.metrics.rows import JoinedRows
from latentdiff.shapes.renderer import render
from latentdiff.shapes.scene import Object, Scene, attributes
from latentdiff.types import Batch

STAR, RING = Object("star", "red", "small", "left"), Object("ring", "yellow", "large", "right")


def picture(*objects):
    return torch.from_numpy(render(Scene("black", objects))).permute(2, 0, 1)


def right_half(count):
    mask = torch.zeros(count, 1, 64, 64, dtype=torch.uint8)
    mask[..., 32:] = 1
    return mask


def result_of(images, scenes, **options):
    metric = HoleAttributes(**options)
    keys = [str(i) for i in range(len(images))]
    scenes = [attributes(Scene("black", objects)) for objects in scenes]
    batch = Batch(keys, mask=right_half(len(images)), attributes=scenes)
    return metric.result(JoinedRows([(0, metric.measure(torch.stack(images), batch))]))


def test_real_scenes_are_right_and_empty_holes_are_not(scenes, measured):
    result = measured(HoleAttributes(), cuts=(31,))
    assert result["objects"] >= 15
    assert min(result[name] for name in ("colour", "position", "size", "shape")) >= 0.95
    assert result["shuffled"]["colour"] < 0.5
    emptied = torch.where(scenes.mask.bool(), scenes.image[..., :1, :1], scenes.image)
    empty = measured(HoleAttributes(), emptied)
    assert max(empty[name] for name in ("colour", "position", "size", "shape")) <= 0.05
    assert empty["objects"] == result["objects"]


def test_only_what_the_hole_hides_is_asked_for():
    other = replace(RING, colour="blue", shape="circle")
    good = result_of([picture(STAR, RING)], [(STAR, RING)])
    assert good == {
        "colour": 1.0,
        "position": 1.0,
        "size": 1.0,
        "shape": 1.0,
        "objects": 1,
        "shuffled": {"colour": 1.0, "position": 1.0, "size": 1.0, "shape": 1.0},
    }
    wrong = result_of([picture(STAR, other)], [(STAR, RING)])
    assert (wrong["colour"], wrong["shape"], wrong["size"], wrong["position"]) == (0.0, 0.0, 1.0, 1.0)
    # a wrong object outside the hole costs nothing, and does not stand in for the one that is missing inside
    assert result_of([picture(replace(STAR, colour="pink"), RING)], [(STAR, RING)]) == good
    assert result_of([picture(replace(RING, position="left"))], [(STAR, RING)])["shape"] == 0.0


def test_means_are_over_objects():
    middle = (replace(STAR, position="top right"), replace(RING, position="bottom right"))
    result = result_of([picture(*middle), picture(STAR)], [middle, (STAR, RING)])
    assert result["objects"] == 3
    assert result["shape"] == pytest.approx(2 / 3)


def test_the_threshold_decides_about_objects_that_are_cut():
    centre = replace(STAR, position="center")
    assert result_of([picture(centre)], [(centre,)]) == {"objects": 0}
    assert result_of([picture(centre)], [(centre,)], hidden=0.4)["objects"] == 1
    with pytest.raises(InputError, match="above 0 and at most 1"):
        HoleAttributes(hidden=0.0)
    assert HoleAttributes(hidden=0.4).describe() == {"hidden": 0.4}


def test_what_it_needs(scenes):
    with pytest.raises(InputError, match="masks of the holes"):
        HoleAttributes().check(replace(scenes, mask=None))
    with pytest.raises(InputError, match="embedded world"):
        HoleAttributes().check(replace(scenes, attributes=[{}] * len(scenes)))
