from dataclasses import replace

import pytest

from latentdiff.config.errors import InputError
from latentdiff.metrics.caption_accuracy import CaptionAccuracy, shuffled

ATTRIBUTES = {"background", "colour", "position", "size", "shape"}


def test_real_scenes_are_right_and_shuffled_captions_are_not(measured):
    result = measured(CaptionAccuracy())
    for group in ("one_object", "two_objects"):
        assert set(result[group]) == ATTRIBUTES
        assert min(result[group].values()) >= 0.97
        assert result["shuffled"][group]["shape"] < 0.5
        assert result["shuffled"][group]["colour"] < 0.5


def test_split_and_order_change_nothing(measured):
    assert measured(CaptionAccuracy()) == measured(CaptionAccuracy(), cuts=(13, 47))


def test_one_wrong_colour_of_one_scene_costs_its_share(scenes, measured):
    first = next(i for i, a in enumerate(scenes.attributes) if len(a["objects"]) == 1)
    one = scenes.rows(first, first + 1)
    asked = dict(one.attributes[0], objects=[dict(one.attributes[0]["objects"][0])])
    asked["objects"][0]["colour"] = "red" if asked["objects"][0]["colour"] != "red" else "blue"
    result = measured(CaptionAccuracy(), one.image, replace(one, attributes=[asked], start=0))
    assert result["one_object"] == {"background": 1.0, "colour": 0.0, "position": 1.0, "size": 1.0, "shape": 1.0}
    assert result["two_objects"] == {}


def test_shuffling_is_a_derangement_within_counts(scenes):
    attributes = scenes.attributes
    moved = shuffled(attributes)
    for count in (1, 2):
        own = [i for i, a in enumerate(attributes) if len(a["objects"]) == count]
        assert len(own) > 1
        assert all(len(moved[i]["objects"]) == count and moved[i] is not attributes[i] for i in own)
        assert {id(moved[i]) for i in own} == {id(attributes[i]) for i in own}
    alone = shuffled(attributes[:1])
    assert alone[0] is attributes[0]


def test_needs_attributes(scenes):
    with pytest.raises(InputError, match="data=shapes"):
        CaptionAccuracy().measure(scenes.image[:1], replace(scenes.rows(0, 1), attributes=None))
