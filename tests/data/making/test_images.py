"""What is done to an image file before it is stored."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError, decode_rgb
from latentdiff.data.making.images import Preparation
from latentdiff.data.making.source import LeftOutError


def test_a_file_that_needs_no_change_is_stored_as_it_is(png, noise):
    for format, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        data = png(noise(0), format)
        for preparation in (
            Preparation(),
            Preparation(size=16, crop=True),
            Preparation(size=99, format=extension, quality=10),
        ):
            picture = preparation(data)
            assert (picture.data, picture.extension) == (data, extension)
            assert (picture.height, picture.width, picture.original_height, picture.original_width) == (16,) * 4


def test_the_short_side_is_reduced_and_never_enlarged(png):
    large = np.full((60, 90, 3), 77, np.uint8)
    picture = Preparation(size=30)(png(large))
    assert (picture.extension, picture.height, picture.width) == ("png", 30, 45)
    assert (picture.original_height, picture.original_width) == (60, 90)
    assert np.array_equal(decode_rgb(picture.data), large[:30, :45])
    assert Preparation(size=60)(png(large)).data == png(large)


def test_the_centre_square_is_cut_before_the_reduction(png):
    pixels = np.zeros((20, 61, 3), np.uint8)
    pixels[:, 20:40] = 200
    assert np.array_equal(decode_rgb(Preparation(crop=True)(png(pixels)).data), pixels[:, 20:40])
    reduced = Preparation(size=10, crop=True)(png(pixels))
    assert np.array_equal(decode_rgb(reduced.data), np.full((10, 10, 3), 200, np.uint8))


def test_another_format_is_encoded_upright_with_its_quality(png, noise):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(noise(0)[:8]).save(file, format="PNG", exif=exif)
    picture = Preparation(format="jpg")(file.getvalue())
    assert (picture.extension, picture.height, picture.width) == ("jpg", 16, 8)
    with Image.open(io.BytesIO(picture.data)) as stored:
        assert (stored.format, stored.size, stored.getexif().get(0x0112)) == ("JPEG", (8, 16), None)
    sizes = [len(Preparation(format="jpg", quality=quality)(png(noise(1))).data) for quality in (30, 60, 95)]
    assert sizes == sorted(set(sizes))


def test_small_large_and_broken_images_are_refused(png, image):
    with pytest.raises(LeftOutError) as left:
        Preparation(min_size=9)(png(image(0, 8, 12)))
    assert (left.value.what, left.value.why) == ("too small", "12x8 pixels, the short side is below 9")
    assert Preparation(min_size=8)(png(image(0, 8, 12))).height == 8
    with pytest.raises(BrokenSampleError, match="cap of 95"):
        Preparation(max_pixels=95)(png(image(0, 8, 12)))
    with pytest.raises(BrokenSampleError, match="neither a JPEG nor a PNG nor a WebP"):
        Preparation()(b"<html>")


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"quality": 101}, {"format": "gif"}, {"min_size": -1}, {"max_pixels": 0}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Preparation(**wrong)
