"""Rendering: areas in closed form, geometry in world units, agreement of image and segmentation."""

from __future__ import annotations

import numpy as np
import pytest

from latentdiff.shapes.renderer import coverage, outlines, render, segmentation
from latentdiff.shapes.scene import ROTATION_JITTER, ROUND, SHAPES, Object, Scene, sample_scene


def _shoelace(vertices: np.ndarray) -> float:
    x, y = vertices.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rotation", [0.0, 7.0])
def test_covered_area_is_the_polygon_area(shape: str, rotation: float):
    outer, *hole = (_shoelace(outline) for outline in outlines(shape))
    expected = (outer - sum(hole)) * 12.0**2
    covered = coverage(shape, 12.0, rotation, (32.0, 32.0), 256).sum() / 16
    assert covered == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_centred_and_stay_within_the_radius(shape: str):
    outer = outlines(shape)[0]
    np.testing.assert_allclose(outer.min(0) + outer.max(0), 0, atol=1e-2)
    for degrees in (0.0,) if shape in ROUND else (-ROTATION_JITTER, 0.0, ROTATION_JITTER):
        a = np.deg2rad(degrees)
        assert np.abs(outer @ [[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]).max() < 1.01


def test_positive_rotation_is_clockwise():
    # The top left corner of the square rises and moves to the right.
    alpha = coverage("square", 24.0, 20.0, (32.0, 32.0), 256)
    top = np.flatnonzero(alpha.any(1))[0]
    found = alpha[top] @ (np.arange(256) + 0.5) / alpha[top].sum() / 4
    half = 0.78 * 24
    assert found == pytest.approx(32 - half * (np.cos(np.deg2rad(20.0)) - np.sin(np.deg2rad(20.0))), abs=0.3)


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_an_object_lies_at_its_centre_at_every_size(image_size: int):
    o = Object("circle", "red", "large", "top right", dx=1.25, dy=-0.5)
    alpha = coverage(o.shape, o.radius, 0.0, o.centre, image_size)
    axis = (np.arange(image_size) + 0.5) * 64 / image_size
    found = (alpha.sum(0) @ axis / alpha.sum(), alpha.sum(1) @ axis / alpha.sum())
    assert found == pytest.approx(o.centre, abs=0.1)
    assert o.centre == (32 + 16.5 + 1.25, 32 - 16.5 - 0.5)


def test_pixels_are_the_objects_colour_inside_and_the_background_outside():
    scene = Scene("navy", (Object("square", "yellow", "large", "left", shade=3),), shade=-2)
    image = render(scene)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert tuple(image[32, 15]) == (253, 223, 33)
    assert tuple(image[0, 63]) == (13, 23, 103)


def test_a_ring_has_a_hole_of_background():
    image = render(Scene("white", (Object("ring", "blue", "small", "center"),)))
    assert tuple(image[32, 32]) == (248, 248, 248)
    assert tuple(image[32, 38]) == (40, 80, 235)


def test_segmentation_names_the_shape_of_every_object():
    scenes = [s for s in (sample_scene(0, i) for i in range(60)) if len(s.objects) == 2]
    for scene in scenes:
        labels, image = segmentation(scene), render(scene).astype(int)
        assert set(np.unique(labels)) == {0, *(1 + SHAPES.index(o.shape) for o in scene.objects)}
        for o in scene.objects:
            inside = image[labels == 1 + SHAPES.index(o.shape)]
            to_object = np.abs(inside - o.rgb).sum(1)
            assert (to_object <= np.abs(inside - scene.rgb).sum(1) + 6).all()


def test_rendering_is_deterministic():
    scene = sample_scene(5, 5)
    np.testing.assert_array_equal(render(scene, 96), render(scene, 96))
