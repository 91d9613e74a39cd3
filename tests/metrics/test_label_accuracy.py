from dataclasses import replace

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.label_accuracy import LabelAccuracy
from latentdiff.shapes.renderer import render
from latentdiff.shapes.scene import SHAPES, Object, Scene
from latentdiff.types import Batch


def drawn(*objects):
    """One image of these (shape, position), each of another colour."""
    colours = ("red", "yellow", "cyan", "pink")
    found = [Object(shape, colour, "small", position) for (shape, position), colour in zip(objects, colours)]
    return torch.from_numpy(render(Scene("black", tuple(found)))).permute(2, 0, 1)


def test_real_scenes_show_their_class_and_others_do_so_by_chance(scenes, measured):
    result = measured(LabelAccuracy(), cuts=(13, 47))
    assert result["accuracy"] >= 0.97
    assert set(result["classes"]) == set(SHAPES)
    assert result["shuffled"]["accuracy"] < 0.45
    assert result == measured(LabelAccuracy())


def test_either_of_two_objects_counts_and_neither_of_a_third(measured):
    images = torch.stack(
        [
            drawn(("star", "left"), ("ring", "right")),
            drawn(("star", "left"), ("ring", "right")),
            drawn(("star", "left"), ("ring", "right")),
            drawn(("circle", "left"), ("square", "right"), ("star", "top")),
        ]
    )
    label = torch.tensor([SHAPES.index(shape) for shape in ("star", "ring", "cross", "star")])
    batch = Batch(keys=list("abcd"), label=label, attributes=[{"objects": []}] * 4)
    result = measured(LabelAccuracy(), images, batch)
    assert result["accuracy"] == 0.5
    assert result["classes"] == {"star": 0.5, "cross": 0.0, "ring": 1.0}


def test_shuffled_labels_of_equal_images_keep_what_is_right(measured):
    images = drawn(("star", "center"))[None].repeat(4, 1, 1, 1)
    batch = Batch(keys=list("abcd"), label=torch.tensor([3, 3, 0, 0]), attributes=[{"objects": []}] * 4)
    result = measured(LabelAccuracy(), images, batch)
    assert result["accuracy"] == 0.5
    assert result["shuffled"] == {"accuracy": 0.5}
    assert measured(LabelAccuracy(), images[:2], batch.rows(0, 2))["shuffled"] == {"accuracy": 1.0}


def test_what_it_needs(scenes):
    for lacking in ({"label": None}, {"label": torch.full((60,), -1)}, {"label": torch.full((60,), 6)}):
        with pytest.raises(InputError, match="class from 0 to 5"):
            LabelAccuracy().check(replace(scenes, **lacking))
    for photographs in (None, [{"caption": "a cat"}] * 60):
        with pytest.raises(InputError, match=r"embedded world.*metrics=frechet"):
            LabelAccuracy().measure(scenes.image, replace(scenes, attributes=photographs))
