from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from latentdiff.config.errors import InputError
from latentdiff.data import decode
from latentdiff.data.decode import BrokenSampleError, check_background, decode_rgb


def png_header(width, height):
    """A PNG without its pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\1\0IDAT"


def gradient(height=40, width=24):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 9, y * 5, (x + y) * 3], axis=2).astype(np.uint8)


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 128, 250)])
@pytest.mark.parametrize("alpha", range(0, 256, 15))
def test_alpha_is_laid_over_the_background_exactly(png, alpha, background):
    colours = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([colours, colours.T, colours, np.full_like(colours, alpha)], axis=2)
    expected = (pixels[:, :, :3].astype(float) * alpha + np.array(background) * (255 - alpha)) / 255
    assert np.abs(decode_rgb(png(pixels), background=background).astype(float) - expected).max() <= 0.5


def test_the_background_is_white_unless_told(png):
    assert decode_rgb(png(np.zeros((1, 1, 4), np.uint8))).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("background", [(0, 0), (0, 0, 256), (-1, 0, 0), (0.5, 0, 0), "abc"])
def test_a_background_that_is_no_colour_is_refused(background):
    with pytest.raises(InputError, match="expected red, green and blue"):
        check_background(background)


def test_gray_with_alpha_and_palette_with_transparency(png):
    grey = np.array([[[100, 0], [100, 255]]], np.uint8)
    assert decode_rgb(png(grey)).tolist() == [[[255] * 3, [100] * 3]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    file = io.BytesIO()
    palette.save(file, format="PNG", transparency=1)
    assert decode_rgb(file.getvalue()).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_sixteen_bit_gray_is_scaled_not_clipped(png):
    assert decode_rgb(png(np.array([[0, 257 * 100, 65535]], np.uint16)))[0, :, 0].tolist() == [0, 100, 255]


def test_sixteen_bit_colour_keeps_its_high_bytes():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" + struct.pack(">3H", 0xFFFF, 0x8080, 0))
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert decode_rgb(data).tolist() == [[[255, 128, 0]]]


def test_cmyk_jpeg_has_the_right_colours():
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(file, format="JPEG", quality=95)  # no cyan: red
    assert np.abs(decode_rgb(file.getvalue()).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_as_in_pillow(png, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = png(gradient(), format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.abs(decode_rgb(data).astype(int) - expected).max() <= (2 if format == "JPEG" else 0)


@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": s, "progressive": p} for s in (0, 1, 2) for p in (False, True)),
        {"keep_rgb": True},
        {"gray": True},
    ],
)
def test_both_jpeg_decoders_give_the_same_pixels(png, monkeypatch, options):
    pytest.importorskip("simplejpeg")
    pixels = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    options = dict(options)
    if options.pop("gray", False):
        pixels = pixels[:, :, 0]
    data = png(pixels, "JPEG", quality=85, **options)
    fast = decode_rgb(data)
    monkeypatch.setattr(decode, "_HAS_SIMPLEJPEG", False)
    assert fast.tolist() == decode_rgb(data).tolist()


def test_cmyk_is_left_to_pillow(monkeypatch):
    """simplejpeg decodes it, to other colours."""
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), (200, 30, 90, 40)).save(file, format="JPEG", quality=95)
    monkeypatch.setattr(decode, "_fast_jpeg", lambda *_: pytest.fail("not by Pillow"))
    expected = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    assert decode_rgb(file.getvalue()).tolist() == np.asarray(expected).tolist()


def test_a_jpeg_that_is_larger_than_its_checked_header_is_refused(png, monkeypatch):
    pytest.importorskip("simplejpeg")
    data = png(gradient(), "JPEG")
    with pytest.raises(ValueError, match="buffer is too small"):
        decode._fast_jpeg(data, 40, 23)


def test_the_first_picture_of_a_phone_s_jpeg_with_several():
    file = io.BytesIO()
    pictures = [Image.new("RGB", (16, 8), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    pictures[0].save(file, format="MPO", save_all=True, append_images=pictures[1:])
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    assert np.abs(decode_rgb(file.getvalue()).astype(int) - [200, 0, 0]).max() <= 3


def test_the_cap_stands_in_for_pillow_s_warning(recwarn):
    with pytest.raises(BrokenSampleError, match="its 10000x12000 pixels are more than the cap"):
        decode_rgb(png_header(10_000, 12_000))
    assert not recwarn.list


def test_webp_and_first_frame_of_an_animation(png):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    file = io.BytesIO()
    frames[0].save(file, format="WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_rgb(file.getvalue())[0, 0].tolist() == [200, 0, 0]


def test_a_bomb_is_refused_by_its_header(png, monkeypatch):
    data = png(np.zeros((300, 400, 3), np.uint8))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BrokenSampleError, match="400x300 pixels are more than the cap of 100000"):
        decode_rgb(data, max_pixels=100_000)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_refused(png, share, format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = png(noise, format)
    with pytest.raises(BrokenSampleError):
        decode_rgb(data[: int(share * len(data))])


@pytest.mark.parametrize(
    "data", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>404</html>", b"GIF89a" + bytes(50)]
)
def test_other_formats_are_refused(data):
    with pytest.raises(BrokenSampleError):
        decode_rgb(data)
