"""Image files to uint8 RGB and maps to class indices: size checked before decoding, upright, without alpha."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from PIL import Image, UnidentifiedImageError

from latentdiff.config.errors import InputError

ORIENTATION_TAG = 0x0112
_HAS_SIMPLEJPEG = find_spec("simplejpeg") is not None
FORMATS = ("JPEG", "PNG", "WEBP")
_JPEG_FORMATS = ("JPEG", "MPO")
"""MPO: a JPEG with further pictures behind it, as many phones write."""
_MAP_MODES = ("1", "L", "P")
_PNG_BIT_DEPTH = 24
"""Where the header of a PNG has it."""
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow's plugins raise on damaged files."""


class BrokenSampleError(ValueError):
    """A sample's file cannot be used; the message says why."""


def decode_rgb(data: bytes, max_pixels: int = 64_000_000, background: Sequence[int] = (255, 255, 255)) -> np.ndarray:
    """uint8 (H, W, 3) from a JPEG, PNG or WebP file, its first frame.

    The EXIF orientation is applied, transparency is laid over ``background`` (red, green, blue), gray, palette, CMYK
    and 16-bit images become 8-bit RGB. Raises BrokenSampleError for anything else, for damaged data, and for more than
    ``max_pixels`` pixels, which the header tells before anything is decoded; Pillow's own limit is 178,956,970.
    """
    if not data:
        raise BrokenSampleError("its image file is empty")
    try:
        with opened(data, FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BrokenSampleError(f"its {width}x{height} pixels are more than the cap of {max_pixels} pixels")
            fast = _HAS_SIMPLEJPEG and image.format in _JPEG_FORMATS and image.mode in ("RGB", "L")
            pixels = _fast_jpeg(data, height, width) if fast else _pixels(image, background)
            return _upright(pixels, image.getexif().get(ORIENTATION_TAG, 1))
    except BrokenSampleError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenSampleError("neither a JPEG nor a PNG nor a WebP image, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise BrokenSampleError(f"it has more than the cap of {max_pixels} pixels ({error})") from error
    except DECODE_ERRORS as error:
        raise BrokenSampleError(f"not a readable image ({error})") from error


def check_background(background: Sequence[int]) -> None:
    """InputError unless these are three whole numbers of 0 to 255."""
    if len(background) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in background):
        raise InputError(
            "data.module.background: expected red, green and blue, each 0 to 255, like [255, 255, 255] for white; got "
            f"{list(background)}"
        )


def decode_map(data: bytes, height: int, width: int) -> np.ndarray:
    """Unsigned integers (H, W) = (height, width) from a gray or palette PNG of 1 to 16 bits: the values as stored.

    The index is taken, not the palette's colour; an EXIF orientation of the map itself is applied. Raises InputError
    (with the words that follow the map's name) for a PNG in colours or of another size, which its header tells;
    BrokenSampleError for anything else.
    """
    try:
        with opened(data, ("PNG",)) as image:
            if sorted(image.size) != sorted((width, height)):
                raise _other_size(*image.size, width, height)
            if image.mode not in _MAP_MODES and not image.mode.startswith("I"):
                raise InputError(
                    f"is in colours (mode {image.mode}); expected a gray or palette PNG whose pixel value is the class"
                )
            values = _upright(_stored_values(image, data), image.getexif().get(ORIENTATION_TAG, 1))
    except InputError:
        raise
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise BrokenSampleError(f"its map is not a readable PNG ({error})") from error
    if values.shape != (height, width):
        raise _other_size(values.shape[1], values.shape[0], width, height)
    return values


def _other_size(width: int, height: int, expected_width: int, expected_height: int) -> InputError:
    return InputError(
        f"is {width}x{height} pixels, its image {expected_width}x{expected_height} (after its EXIF orientation); "
        "make the map as large as the image"
    )


def _stored_values(image: Image.Image, data: bytes) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "L":  # Pillow spreads gray of 2 and 4 bits over 0 .. 255
        bits = data[_PNG_BIT_DEPTH]
        values = values // (255 // (2**bits - 1))
    return values.astype(np.uint16 if image.mode.startswith("I") else np.uint8)


def opened(data: bytes, formats: Sequence[str]) -> Image.Image:
    """With its header read. Our cap stands in for Pillow's warning about large images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=formats)


def _fast_jpeg(data: bytes, height: int, width: int) -> np.ndarray:
    """libjpeg-turbo directly: the same pixels as Pillow's in less time, and an error where data is damaged within.

    The buffer makes it refuse a file whose decoder sees more pixels than the header that was checked.
    """
    import simplejpeg

    return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=np.empty((height, width, 3), np.uint8))


def _pixels(image: Image.Image, background: Sequence[int]) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion would clip
        gray = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(gray.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[:, :, 3:].astype(np.uint16)
    mixed = alpha * rgba[:, :, :3] + (255 - alpha) * np.array(background, np.uint16) + 128
    return ((mixed + (mixed >> 8)) >> 8).astype(np.uint8)  # x / 255 to the nearest integer, exact up to 255^2


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.3, tag Orientation: 1 to 4 keep the axes, 5 to 8 exchange them."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
