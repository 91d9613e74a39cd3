"""Image files to uint8 RGB and maps to class indices: size checked before decoding, upright, without alpha."""

from __future__ import annotations

import io
import struct
import zlib
from importlib.util import find_spec

import numpy as np
from PIL import Image

from latentdiff.config.errors import InputError

_ORIENTATION_TAG = 0x0112
_HAS_SIMPLEJPEG = find_spec("simplejpeg") is not None
_FORMATS = ("JPEG", "PNG", "WEBP")
_MAP_MODES = ("1", "L", "P")
_PNG_BIT_DEPTH = 24
"""Where the header of a PNG has it."""
_DECODE_ERRORS = (
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
    Image.DecompressionBombError,
)
"""What Pillow's plugins raise on damaged files."""


class BrokenSampleError(ValueError):
    """A sample's file cannot be used; the message says why."""


def decode_rgb(data: bytes, max_pixels: int = 64_000_000) -> np.ndarray:
    """uint8 (H, W, 3) from a JPEG, PNG or WebP file, its first frame.

    The EXIF orientation is applied, transparency is laid over white, gray, palette, CMYK and 16-bit images become
    8-bit RGB. Raises BrokenSampleError for anything else and for more than ``max_pixels`` pixels, which the header
    tells before anything is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BrokenSampleError(f"{width}x{height} pixels, more than the cap of {max_pixels}")
            fast = _HAS_SIMPLEJPEG and image.format == "JPEG" and image.mode == "RGB"
            pixels = _fast_jpeg(data) if fast else _pixels(image)
            return _upright(pixels, image.getexif().get(_ORIENTATION_TAG, 1))
    except BrokenSampleError:
        raise
    except _DECODE_ERRORS as error:
        raise BrokenSampleError(f"not a readable image ({error})") from error


def decode_map(data: bytes, height: int, width: int) -> np.ndarray:
    """Unsigned integers (H, W) = (height, width) from a gray or palette PNG of 1 to 16 bits: the values as stored.

    The index is taken, not the palette's colour; an EXIF orientation of the map itself is applied. Raises InputError
    (with the words that follow the map's name) for a PNG in colours or of another size, which its header tells;
    BrokenSampleError for anything else.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if sorted(image.size) != sorted((width, height)):
                raise _other_size(*image.size, width, height)
            if image.mode not in _MAP_MODES and not image.mode.startswith("I"):
                raise InputError(
                    f"is in colours (mode {image.mode}); expected a gray or palette PNG whose pixel value is the class"
                )
            values = _upright(_stored_values(image, data), image.getexif().get(_ORIENTATION_TAG, 1))
    except InputError:
        raise
    except _DECODE_ERRORS as error:
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


def _fast_jpeg(data: bytes) -> np.ndarray:
    """libjpeg-turbo directly: the same pixels as Pillow's in less time."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion would clip
        gray = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(gray.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[:, :, 3:].astype(np.uint16)
    over_white = 255 * 255 - alpha * (255 - rgba[:, :, :3]) + 128
    return ((over_white + (over_white >> 8)) >> 8).astype(np.uint8)  # x / 255 to the nearest integer, exact up to 255^2


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.3, tag Orientation: 1 to 4 keep the axes, 5 to 8 exchange them."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
