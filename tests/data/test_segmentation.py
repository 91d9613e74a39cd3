from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import Frame
from latentdiff.data.decode import BrokenSampleError, decode_map
from latentdiff.data.sample import Sample
from latentdiff.data.segmentation import EdgeMaps, SegmentationMaps


def laid(data, classes=10, height=4, width=4, **options):
    pixels = np.zeros((height, width, 3), np.uint8)
    sample = Sample(pixels, [], -1, {}, "'set/7' in set.tar", {"seg.png": data}.get)
    frame = Frame(height, width, 0, 0, *2 * [min(height, width)], False, *2 * [min(height, width)])
    return SegmentationMaps(classes=classes, **options)(sample, frame, None, None)


def gray_png(values, bits):
    """A gray PNG of 1 to 8 bits, packed by hand: Pillow writes 1 and 8 only."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    digits = (values[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_of_any_depth_is_read_as_stored(bits):
    values = np.arange(35).reshape(5, 7) % min(2**bits, 200)
    assert np.array_equal(decode_map(gray_png(values, bits), 5, 7), values)


def test_palette_and_sixteen_bits_are_read_as_stored(png):
    values = np.array([[0, 1], [2, 3]], np.uint8)
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([200, 0, 0, 200, 0, 0, 0, 0, 0, 1, 2, 3])  # two classes of one colour
    file = io.BytesIO()
    palette.save(file, format="PNG")
    assert np.array_equal(decode_map(file.getvalue(), 2, 2), values)
    deep = values.astype(np.uint16) + 300
    assert np.array_equal(decode_map(png(deep), 2, 2), deep)


def test_the_map_s_own_orientation_is_applied(png):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(decode_map(png(values, exif=exif), 3, 2), np.rot90(values, -1))
    with pytest.raises(InputError, match="is 2x3 pixels, its image 3x2"):
        decode_map(png(values, exif=exif), 2, 3)


def test_a_map_of_another_size_is_refused_by_its_header(png, monkeypatch):
    data = png(np.zeros((300, 400), np.uint8))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="is 400x300 pixels, its image 4x3"):
        decode_map(data, 3, 4)


@pytest.mark.parametrize("data", [b"", b"not a map", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_png_is_broken(data):
    with pytest.raises(BrokenSampleError, match="not a readable PNG"):
        decode_map(data, 4, 4)


def test_maps_in_colours_are_refused(png):
    for channels in (2, 3, 4):
        with pytest.raises(InputError, match=r"is in colours .* expected a gray or palette PNG"):
            decode_map(png(np.zeros((4, 4, channels), np.uint8)), 4, 4)
    with pytest.raises(BrokenSampleError):
        decode_map(png(np.zeros((4, 4), np.uint8), "JPEG"), 4, 4)


def test_classes_and_unlabelled_pixels_are_kept(png):
    values = np.array([[0, 9, 255, 3]] * 4, np.uint8)
    out = laid(png(values))
    assert out.dtype == torch.uint8
    assert np.array_equal(out.numpy(), values)


@pytest.mark.parametrize("value", [10, 254, 256, 65535])
def test_values_out_of_range_are_refused_with_the_sample_s_name(png, value):
    values = np.zeros((4, 4), np.uint8 if value < 256 else np.uint16)
    values[1, 2:] = value
    with pytest.raises(InputError, match=rf"'set/7' in set.tar holds the class {value} in 2 of .* 0 to 9, or 255"):
        laid(png(values))


def test_errors_of_the_file_name_the_sample(png):
    with pytest.raises(InputError, match=r"the \.seg\.png of sample 'set/7' in set\.tar is 4x5 pixels"):
        laid(png(np.zeros((5, 4), np.uint8)))


def test_a_sample_without_a_map_is_unlabelled():
    assert (laid(None, require=False) == 255).all()


def test_numbers_of_classes():
    for classes in (0, 256):
        with pytest.raises(InputError, match="expected 1 to 255 classes"):
            SegmentationMaps(classes=classes)


# --- edges -----------------------------------------------------------------------------------------------------------


def step(size=16, at=8, low=40, high=90):
    image = torch.full((3, size, size), low, dtype=torch.uint8)
    image[1, :, at:] = high
    return image


def test_a_step_is_an_edge_in_the_two_columns_beside_it():
    expected = torch.zeros(16, 16, dtype=torch.uint8)
    expected[:, 7:9] = 1
    sharp = EdgeMaps(blur=0, threshold=24.9)
    assert torch.equal(sharp.edges(step()), expected)  # 50 levels: 25 in each column
    assert torch.equal(sharp.edges(step().mT), expected.T)
    assert EdgeMaps(blur=0, threshold=25.1).edges(step()).sum() == 0


def test_a_blur_of_one_leaves_what_is_told():
    assert (EdgeMaps(threshold=0.31 * 50).edges(step())[:, 7:9] == 1).all()
    assert EdgeMaps(threshold=0.33 * 50).edges(step()).sum() == 0


def test_a_diagonal_counts_both_slopes():
    image = torch.zeros(3, 9, 9, dtype=torch.uint8)
    ramp = torch.arange(9) * 10
    image[:] = (ramp[:, None] + ramp[None]).to(torch.uint8)
    inner = (slice(1, -1), slice(1, -1))
    assert (EdgeMaps(blur=0, threshold=14.1).edges(image)[inner] == 1).all()  # sqrt(10^2 + 10^2)
    assert (EdgeMaps(blur=0, threshold=14.2).edges(image)[inner] == 0).all()


def test_flat_images_have_no_edges_and_mirrored_ones_mirrored_edges():
    assert EdgeMaps().edges(torch.full((3, 12, 12), 200, dtype=torch.uint8)).sum() == 0
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 20, 20), dtype=np.uint8))
    edges = EdgeMaps(threshold=30).edges(image)
    assert 0 < edges.float().mean() < 1
    assert torch.equal(EdgeMaps(threshold=30).edges(image.flip(-1)), edges.flip(-1))


def test_senseless_options_are_refused():
    for options in ({"blur": -1.0}, {"threshold": 0.0}):
        with pytest.raises(InputError, match="EdgeMaps: expected"):
            EdgeMaps(**options)
