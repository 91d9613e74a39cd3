from __future__ import annotations

import numpy as np
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import Frame
from latentdiff.data.masks import RandomMasks
from latentdiff.shapes.components import components

ONLY = {"boxes": 0.0, "strokes": 0.0, "outpainting": 0.0}


def drawn(masks, count, size=64):
    return np.stack([masks.draw(size, size, np.random.default_rng(i)) for i in range(count)])


@pytest.mark.parametrize("law", [*ONLY, None])
@pytest.mark.parametrize(("least", "most"), [(0.1, 0.75), (0.0, 1.0), (0.4, 0.5), (0.85, 0.95)])
@pytest.mark.parametrize("size", [12, 64])
def test_the_share_of_the_hole_is_bounded(law, least, most, size):
    weights = {} if law is None else {**ONLY, law: 1.0}
    masks = drawn(RandomMasks(**weights, min_share=least, max_share=most), 60, size)
    shares = masks.mean((1, 2))
    assert masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    assert least <= shares.min() <= shares.max() <= most


def test_laws_are_chosen_by_their_weights():
    masks = RandomMasks(boxes=3, strokes=0, outpainting=1, min_share=0, max_share=1)
    for i in range(50):
        rng = np.random.default_rng(i)
        law = masks.boxes if rng.random() < 0.75 else masks.outpainting
        assert np.array_equal(masks.draw(64, 64, np.random.default_rng(i)), law(64, 64, rng))
    only = RandomMasks(boxes=0, strokes=0.2, outpainting=0, min_share=0, max_share=1)
    for i in range(10):
        rng = np.random.default_rng(i)
        rng.random()
        assert np.array_equal(only.draw(64, 64, np.random.default_rng(i)), only.strokes(64, 64, rng))


def test_boxes_have_the_edges_that_are_told():
    masks = RandomMasks(most_boxes=1)
    found = [masks.boxes(100, 100, np.random.default_rng(i)) for i in range(400)]
    heights, widths = (np.array([mask.any(axis).sum() for mask in found]) for axis in (1, 0))
    assert all(mask.sum() == h * w for mask, h, w in zip(found, heights, widths))
    for edges in (heights, widths):
        assert 12 <= edges.min() <= 14 < 58 <= edges.max() <= 60
        assert abs(edges.mean() - 36) < 4 * (48 / 12**0.5) / 400**0.5
    everywhere = np.any(found, axis=0)
    assert everywhere[[0, -1]].any(1).all()
    assert everywhere[:, [0, -1]].any(0).all()


def test_at_most_so_many_boxes():
    masks = RandomMasks(most_boxes=3)
    parts = [len(components(masks.boxes(200, 200, np.random.default_rng(i)) == 1, 1)) for i in range(200)]
    assert set(parts) == {1, 2, 3}


def test_a_stroke_is_one_thick_part_inside_the_image():
    masks = RandomMasks(most_strokes=1)
    for i in range(100):
        mask = masks.strokes(128, 128, np.random.default_rng(i))
        (part,) = components(mask == 1, 1)
        assert part.sum() == mask.sum()
        longest = max(len(run) for row in mask for run in "".join(map(str, row)).split("0"))
        assert longest >= 0.05 * 128 - 1


def test_outpainting_takes_one_to_four_sides_equally_often():
    masks = RandomMasks()
    sides = np.zeros(4, int)
    touched = np.zeros(4, int)
    for i in range(1200):
        mask = masks.outpainting(64, 64, np.random.default_rng(i))
        known = np.argwhere(mask == 0)
        (top, left), (bottom, right) = known.min(0), 63 - known.max(0)
        depths = np.array([top, bottom, left, right])
        assert mask.sum() == 64 * 64 - (64 - top - bottom) * (64 - left - right)  # the known part is one rectangle
        assert all(depth == 0 or 8 <= depth <= 24 for depth in depths)
        sides[(depths > 0).sum() - 1] += 1
        touched += depths > 0
    assert np.abs(sides - 300).max() < 4 * (1200 * 0.25 * 0.75) ** 0.5
    assert np.abs(touched - 750).max() < 4 * (1200 * 0.625 * 0.375) ** 0.5


def test_as_a_condition_it_is_a_pure_function_of_the_generator():
    frame = Frame(80, 64, 8, 0, 64, 64, False, 32, 32)
    first, again, other = (RandomMasks()(None, frame, None, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (1, 32, 32)
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ONLY, "one above 0"),
        ({"boxes": -1.0}, "at least 0"),
        ({"strokes": float("nan")}, "at least 0"),
        ({"most_boxes": 0}, "counts of at least 1"),
        ({"min_share": 0.5, "max_share": 0.55}, "at least 0.1 apart"),
        ({"min_share": -0.1}, "0 <= min_share"),
        ({"max_share": 1.1}, "max_share <= 1"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RandomMasks(**options)


@pytest.mark.parametrize("law", [*ONLY, None])
@pytest.mark.parametrize(("least", "most"), [(0.1, 0.75), (0.4, 0.5), (0.85, 0.95)])
@pytest.mark.parametrize("shape", [(12, 40), (64, 36)])
def test_masks_of_images_that_are_not_square(law, least, most, shape):
    weights = {} if law is None else {**ONLY, law: 1.0}
    masks = RandomMasks(**weights, min_share=least, max_share=most)
    shares = []
    for i in range(30):
        mask = masks.draw(*shape, np.random.default_rng(i))
        assert mask.shape == shape
        shares.append(mask.mean())
    assert least <= min(shares) <= max(shares) <= most


def test_masks_of_squares_are_what_they_were():
    """Sums of the first masks, from the version that knew squares only."""
    found = [int(RandomMasks().draw(48, 48, np.random.default_rng(i)).sum()) for i in range(8)]
    assert found == [399, 773, 626, 456, 1716, 1156, 580, 684]
