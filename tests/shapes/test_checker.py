"""The checker: right on real pictures and blurred noisy ones, and not fooled by wrong ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from latentdiff.config.errors import InputError
from latentdiff.shapes.captions import parse
from latentdiff.shapes.checker import ATTRIBUTES, OBJECT_ATTRIBUTES, read, score, summarise
from latentdiff.shapes.renderer import coverage, render, segmentation
from latentdiff.shapes.scene import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, Object, Scene, attributes, sample_scene

SCENES = [sample_scene(42, i, split="val") for i in range(500)]
ASKED = [attributes(s) for s in SCENES]
IMAGES = np.stack([render(s) for s in SCENES])
PAIR = Scene("gray", (Object("star", "red", "large", "left"), Object("ring", "cyan", "large", "right")))


def _channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def _read_scene(scene: Scene, image_size: int = 64):
    return read(_channels_first(render(scene, image_size)[None]))


def _worst(images: np.ndarray) -> float:
    summary = summarise(score(read(_channels_first(images)), ASKED))
    assert {group: set(means) for group, means in summary.items()} == {
        "one_object": set(ATTRIBUTES),
        "two_objects": set(ATTRIBUTES),
    }
    return min(value for means in summary.values() for value in means.values())


def test_real_pictures_are_read_right():
    assert _worst(IMAGES) >= 0.99


def test_blurred_noisy_pictures_are_read_right():
    blurred = np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(0.7))) for i in IMAGES])
    noise = np.random.default_rng(0).normal(0, 6, blurred.shape)
    assert _worst((blurred + noise).clip(0, 255).round().astype(np.uint8)) >= 0.97


@pytest.mark.parametrize("image_size", [48, 128])
def test_other_image_sizes_are_read_alike(image_size: int):
    scenes = SCENES[:60]
    images = _channels_first(np.stack([render(s, image_size) for s in scenes]))
    summary = summarise(score(read(images), [attributes(s) for s in scenes]))
    assert min(value for means in summary.values() for value in means.values()) >= 0.99


def test_geometry_matches_the_scene():
    for scene in SCENES[:100]:
        (reading,) = _read_scene(scene)
        labels = segmentation(scene)
        for o in scene.objects:
            found = next(r for r in reading.objects if r.shape == o.shape)
            truth = labels == 1 + SHAPES.index(o.shape)
            assert found.centre == pytest.approx(o.centre, abs=1.5)
            assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.9
            assert found.area == pytest.approx(coverage(o.shape, o.radius, o.rotation, o.centre, 64).sum(), rel=0.02)
            assert found.fit > 0.85


def test_every_shape_and_size_is_told_apart_at_every_rotation():
    for shape in SHAPES:
        for size in ("small", "large"):
            for rotation in (-8.0, 3.0, 8.0):
                o = Object(shape, "blue", size, "center", dx=0.4, dy=-0.3, radius_scale=1.05, rotation=rotation)
                (reading,) = _read_scene(Scene("white", (o,)))
                assert [(r.shape, r.size) for r in reading.objects] == [(shape, size)]


def test_wrong_captions_score_near_chance():
    readings = read(_channels_first(IMAGES))
    single = [i for i, s in enumerate(SCENES) if len(s.objects) == 1]
    shifted = single[1:] + single[:1]
    (means,) = (v for v in summarise(score([readings[i] for i in single], [ASKED[i] for i in shifted])).values() if v)
    chance = {"background": 6, "colour": 8, "position": 9, "size": 2, "shape": 8}
    assert set(chance) == set(means)
    for name, choices in chance.items():
        assert means[name] == pytest.approx(1 / choices, abs=0.08)


def test_a_blank_image_scores_the_background_alone():
    blank = torch.tensor(BACKGROUNDS["gray"], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    (result,) = score(read(blank), [attributes(PAIR)])
    assert result == {"n_objects": 2, "background": 1.0, **dict.fromkeys(OBJECT_ATTRIBUTES, 0.0)}


def test_a_missing_object_costs_half():
    (result,) = score(_read_scene(replace(PAIR, objects=PAIR.objects[:1])), [attributes(PAIR)])
    assert result == {"n_objects": 2, "background": 1.0, **dict.fromkeys(OBJECT_ATTRIBUTES, 0.5)}


def test_swapped_colours_are_noticed():
    first, second = PAIR.objects
    swapped = (replace(first, colour=second.colour), replace(second, colour=first.colour))
    (result,) = score(_read_scene(replace(PAIR, objects=swapped)), [attributes(PAIR)])
    assert [result[name] for name in ATTRIBUTES] == [1.0, 0.0, 1.0, 1.0, 1.0]


def test_swapped_places_are_noticed():
    first, second = PAIR.objects
    swapped = (replace(first, position=second.position), replace(second, position=first.position))
    (result,) = score(_read_scene(replace(PAIR, objects=swapped)), [attributes(PAIR)])
    assert [result[name] for name in ATTRIBUTES] == [1.0, 1.0, 0.0, 1.0, 1.0]


def test_the_order_of_the_asked_objects_does_not_matter():
    (result,) = score(_read_scene(PAIR), [attributes(replace(PAIR, objects=PAIR.objects[::-1]))])
    assert all(result[name] == 1.0 for name in ATTRIBUTES)


def test_a_surplus_object_is_ignored_if_it_is_smaller():
    first, second = PAIR.objects
    scene = replace(PAIR, objects=(first, replace(second, size="small")))
    (result,) = score(_read_scene(scene), [attributes(replace(PAIR, objects=(first,)))])
    assert all(result[name] == 1.0 for name in ATTRIBUTES)


def test_objects_that_touch_are_told_apart_by_colour():
    left, right = Object("square", "red", "large", "left", dx=8.0), Object("circle", "blue", "large", "right", dx=-6.0)
    (reading,) = _read_scene(Scene("white", (left, right)))
    assert {(o.colour, o.shape) for o in reading.objects} == {("red", "square"), ("blue", "circle")}


def test_a_free_prompt_is_scored_on_what_it_says():
    readings = _read_scene(PAIR)
    (right,) = score(readings, [parse("a red star, left of a cyan ring")])
    assert right == {"n_objects": 2, "background": None, "colour": 1.0, "position": 1.0, "size": None, "shape": 1.0}
    (wrong,) = score(readings, [parse("a red star, left of a box")])
    assert wrong == {"n_objects": 2, "background": None, "colour": 1.0, "position": 1.0, "size": None, "shape": 0.5}


def test_summary_groups_by_number_of_objects():
    one = {"n_objects": 1, "background": 1.0, "colour": 1.0, "position": 0.0, "size": None, "shape": 1.0}
    two = {"n_objects": 2, "background": 0.0, "colour": 0.5, "position": 1.0, "size": 1.0, "shape": 0.0}
    assert summarise([one, dict(one, position=1.0), two]) == {
        "one_object": {"background": 1.0, "colour": 1.0, "position": 0.5, "shape": 1.0},
        "two_objects": {name: two[name] for name in ATTRIBUTES},
    }


def test_pure_noise_is_read_without_an_object_of_good_fit():
    noise = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert max((o.fit for reading in read(noise) for o in reading.objects), default=0.0) < 0.6


def test_palettes_have_the_sizes_that_chance_assumes():
    assert (len(BACKGROUNDS), len(COLOURS), len(POSITIONS), len(SHAPES)) == (6, 8, 9, 6)


@pytest.mark.parametrize("images", [torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(1, 3, 64, 64)])
def test_other_shapes_and_dtypes_are_refused(images: torch.Tensor):
    with pytest.raises(InputError, match="expected uint8 images"):
        read(images)


def test_a_count_mismatch_is_refused():
    with pytest.raises(InputError, match="one reading per"):
        score(_read_scene(PAIR), [])
