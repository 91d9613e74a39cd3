from __future__ import annotations

import pytest
import torch

from latentdiff.generation.fill import filled


def picture(height=12, width=20):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hole = torch.zeros(2, 1, height, width)
    hole[0, :, 2:9, 3:15] = 1
    hole[1, :, :, 10:] = 1
    return image, hole


@pytest.mark.parametrize("size", [(12, 20), (16, 16), (7, 1), (5, 9)])
def test_the_known_stays_and_the_hole_is_not_looked_at(size):
    image, hole = picture(*size)
    got = filled(image, hole)
    assert torch.equal(got[hole.expand_as(got) == 0], image[hole.expand_as(image) == 0])
    assert torch.equal(filled(torch.where(hole > 0, torch.full_like(image, 7.0), image), hole), got)


def test_a_flat_picture_is_continued_and_no_value_is_invented():
    image, hole = picture()
    assert torch.allclose(filled(torch.full_like(image, 0.3), hole), torch.full_like(image, 0.3))
    got = filled(image, hole)
    assert got.min() >= image.min()
    assert got.max() <= image.max()


def test_takes_the_nearest_known_block():
    """Left half -1, right half 1, the hole across both: each end of the hole is like what it touches."""
    image = torch.cat([torch.full((1, 1, 8, 8), -1.0), torch.full((1, 1, 8, 8), 1.0)], dim=3)
    hole = torch.zeros(1, 1, 8, 16)
    hole[..., 2:14] = 1
    row = filled(image, hole)[0, 0, 4]
    assert bool((row.diff() >= -1e-6).all())
    assert row[2] < -0.5
    assert row[13] > 0.5


def test_nothing_known_is_gray():
    image, hole = picture()
    assert torch.equal(filled(image, torch.ones_like(hole)), torch.zeros_like(image))
