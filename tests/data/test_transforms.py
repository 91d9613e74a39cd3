from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.data.conditions import Frame
from latentdiff.data.transforms import CoverCrop


def columns(height, width):
    return np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 3)).copy()


def test_centre_crop_of_the_right_size_is_a_copy_of_the_pixels():
    out = CoverCrop(size=4)(columns(4, 10), 0.9, 0.1)
    assert out.shape == (3, 4, 4)
    assert out[0, 0].tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(("where", "first"), [(0.0, 0), (0.5, 3), (0.999, 6)])
def test_random_crop_reaches_both_ends(where, first):
    crop = CoverCrop(size=4, random_crop=True)
    assert crop(columns(4, 10), where, 1.0)[0, 0].tolist() == list(range(first, first + 4))
    assert crop(columns(4, 10).transpose(1, 0, 2), where, 1.0)[0, :, 0].tolist() == list(range(first, first + 4))


def test_flip_mirrors_below_one_half_only():
    crop = CoverCrop(size=4, flip=True)
    assert crop(columns(4, 4), 0.5, 0.49)[0, 0].tolist() == [3, 2, 1, 0]
    assert crop(columns(4, 4), 0.5, 0.5)[0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(96, 130), (130, 96), (20, 20)])
def test_resize_as_in_pillow(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    edge = min(shape)
    top, left = (shape[0] - edge) // 2, (shape[1] - edge) // 2
    square = Image.fromarray(pixels[top : top + edge, left : left + edge])
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    out = CoverCrop(size=32)(pixels, 0.5, 1.0)
    assert out.dtype == torch.uint8
    assert np.abs(out.numpy().astype(int) - expected).max() <= 2


def test_downscaling_does_not_alias():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    out = CoverCrop(size=16)(stripes, 0.5, 1.0)[:, 2:-2, 2:-2].float()
    assert (out - 127.5).abs().max() <= 2


def test_the_frame_says_what_was_cut():
    crop = CoverCrop(size=4, random_crop=True, flip=True)
    wide = crop.frame(4, 10, 0.999, 0.1)
    assert wide == Frame(4, 10, top=0, left=6, crop_height=4, crop_width=4, mirrored=True, out_height=4, out_width=4)
    tall = crop.frame(10, 6, 0.5, 0.9)
    assert (tall.top, tall.left, tall.crop_height, tall.crop_width, tall.mirrored) == (2, 0, 6, 6, False)
    assert not CoverCrop(size=4).frame(4, 4, 0.5, 0.1).mirrored
    pixels = columns(4, 10)
    assert torch.equal(crop.cut(pixels, wide), crop(pixels, 0.999, 0.1))
    assert torch.equal(wide.lay(pixels[:, :, 0]), crop.cut(pixels, wide)[0])


@pytest.mark.parametrize(
    ("shape", "size", "part"),
    [
        ((30, 50), (12, 20), (0, 0, 30, 50)),
        ((30, 60), (12, 20), (0, 5, 30, 50)),
        ((40, 50), (12, 20), (5, 0, 30, 50)),
        ((10, 10), (20, 12), (0, 2, 10, 6)),
        ((1, 100), (8, 16), (0, 49, 1, 2)),
        ((100, 1), (8, 16), (49, 0, 1, 1)),
    ],
)
def test_the_largest_part_of_the_shape_is_cut(shape, size, part):
    frame = CoverCrop(size=size).frame(*shape, 0.5, 1.0)
    assert (frame.top, frame.left, frame.crop_height, frame.crop_width) == part
    image = CoverCrop(size=size)(np.zeros((*shape, 3), np.uint8), 0.5, 1.0)
    assert image.shape == (3, *size)


def test_random_parts_reach_both_ends_of_the_side_that_is_cut():
    crop = CoverCrop(size=(4, 8), random_crop=True)
    assert {crop.frame(10, 12, where, 1.0).top for where in (0.0, 0.5, 0.999)} == {0, 2, 4}
    assert {crop.frame(5, 14, where, 1.0).left for where in (0.0, 0.5, 0.999)} == {0, 2, 4}


def test_maps_follow_parts_that_are_not_square():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 31, 3), dtype=np.uint8)
    crop = CoverCrop(size=(9, 15), random_crop=True, flip=True)
    frame = crop.frame(9, 31, 0.3, 0.2)
    assert torch.equal(frame.lay(pixels[:, :, 1]), crop.cut(pixels, frame)[1])
    half = CoverCrop(size=(3, 5)).frame(9, 31, 0.5, 1.0)
    assert half.lay(pixels[:, :, 0]).tolist() == pixels[1::3, 8 + 1 : 23 : 3, 0].tolist()


def test_one_pixel_is_mirrored():
    assert CoverCrop(size=2, flip=True)(columns(1, 1), 0.5, 0.1).shape == (3, 2, 2)
