"""Scenes: pure functions of the seed, exact attributes, and the rules of the world."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from latentdiff.config.errors import InputError
from latentdiff.shapes.scene import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    HELD_OUT,
    OPPOSITE,
    POSITION_JITTER,
    POSITIONS,
    RADIUS_JITTER,
    SHAPES,
    SIZES,
    WORLD,
    Scene,
    attributes,
    from_attributes,
    sample_scene,
)

TRAIN = [sample_scene(0, i) for i in range(4000)]
VAL = [sample_scene(0, i, split="val") for i in range(4000)]


def test_a_scene_depends_on_its_seed_index_and_split_alone():
    backwards = [sample_scene(0, i) for i in reversed(range(50))]
    assert backwards[::-1] == TRAIN[:50]
    assert sum(sample_scene(1, i) == TRAIN[i] for i in range(50)) == 0
    assert sum(VAL[i] == TRAIN[i] for i in range(50)) == 0
    assert len(set(TRAIN)) == len(TRAIN)


def test_attributes_survive_json_exactly():
    for scene in VAL[:500]:
        assert from_attributes(json.loads(json.dumps(attributes(scene)))) == scene


def test_attributes_name_what_the_scene_holds():
    scene = next(s for s in VAL if len(s.objects) == 2 and s.held_out)
    values = attributes(scene, image_size=128)
    assert (values["n_objects"], values["held_out"], values["image_size"]) == (2, True, 128)
    assert values["label"] == SHAPES.index(values["objects"][0]["shape"])


def test_held_out_pairs_are_a_latin_pattern():
    assert len(HELD_OUT) == 6
    assert {shape for shape, _ in HELD_OUT} == set(SHAPES)
    assert len({colour for _, colour in HELD_OUT}) == 6
    assert {colour for _, colour in HELD_OUT} < set(COLOURS)


def test_training_never_shows_a_held_out_pair_and_validation_does_in_three_tenths():
    pairs = {(o.shape, o.colour) for s in TRAIN for o in s.objects}
    assert pairs == set(itertools.product(SHAPES, COLOURS)) - HELD_OUT
    assert np.mean([s.held_out for s in VAL]) == pytest.approx(0.3, abs=0.03)
    assert all(s.held_out == any((o.shape, o.colour) in HELD_OUT for o in s.objects) for s in VAL)


def test_held_out_can_be_forced():
    assert all(sample_scene(3, i, True, split="val").held_out for i in range(100))
    assert not any(sample_scene(3, i, False, split="val").held_out for i in range(100))
    with pytest.raises(InputError, match="never contains held-out"):
        sample_scene(3, 0, True)
    with pytest.raises(InputError, match="expected split"):
        sample_scene(3, 0, split="test")


def test_every_value_occurs_about_equally_often():
    single = [s.objects[0] for s in TRAIN if len(s.objects) == 1]
    for name, table in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("position", POSITIONS)):
        counts = Counter(getattr(o, name) for o in single)
        assert set(counts) == set(table)
        expected = len(single) / len(table)
        assert max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5
    assert set(Counter(s.background for s in TRAIN)) == set(BACKGROUNDS)
    assert np.mean([len(s.objects) == 2 for s in TRAIN]) == pytest.approx(0.3, abs=0.03)


def test_two_objects_stand_opposite_and_differ_in_shape_and_colour():
    for first, second in (s.objects for s in TRAIN + VAL if len(s.objects) == 2):
        assert OPPOSITE[first.position] == second.position
        assert first.shape != second.shape
        assert first.colour != second.colour
    for first, second in OPPOSITE.items():
        assert np.abs(np.subtract(POSITIONS[first], POSITIONS[second])).max() == 2


def test_the_largest_objects_neither_overlap_nor_leave_the_image():
    reach = SIZES["large"] * (1 + RADIUS_JITTER)
    assert 2 * CELL - 2 * POSITION_JITTER - 2 * reach > 2
    assert WORLD / 2 - CELL - POSITION_JITTER - reach > 0


def test_the_sizes_stay_apart_under_jitter():
    assert SIZES["large"] * (1 - RADIUS_JITTER) > 1.3 * SIZES["small"] * (1 + RADIUS_JITTER)


def test_colours_are_far_apart():
    objects, backgrounds = list(COLOURS.values()), list(BACKGROUNDS.values())
    pairs = itertools.combinations(objects + backgrounds, 2)
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in pairs) > 90
    assert min(np.linalg.norm(np.subtract(a, b)) for a in objects for b in backgrounds) > 100


@pytest.mark.parametrize(
    ("field", "value"), [("shape", "hexagon"), ("colour", "white"), ("size", "medium"), ("position", "nowhere")]
)
def test_unknown_names_are_refused(field: str, value: str):
    values = attributes(TRAIN[0])
    values["objects"][0][field] = value
    with pytest.raises(InputError, match=f"expected {field} .*'{value}'"):
        from_attributes(values)


def test_shade_moves_the_colour():
    assert Scene("gray", (), shade=5).rgb == (133, 133, 133)
    assert Scene("white", (), shade=20).rgb == (255, 255, 255)
