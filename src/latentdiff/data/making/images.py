"""An image file as it goes into a shard: checked, and where asked for cropped, reduced and encoded anew."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import nearest
from latentdiff.data.decode import BrokenSampleError, decode_map, decode_rgb
from latentdiff.data.making.source import LeftOutError
from latentdiff.data.segmentation import MAP_EXTENSION

_ENCODERS = {"jpg": ("JPEG", {"subsampling": 0}), "png": ("PNG", {}), "webp": ("WEBP", {"method": 4})}
FORMATS = tuple(_ENCODERS)


@dataclass(frozen=True)
class Picture:
    """An image as stored, with its map; sizes in pixels, upright."""

    extension: str
    data: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    map_data: bytes | None


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to every image. A file that needs no change is stored as it is, byte by byte.

    First the centre square is cut out (``crop``), then the short side is reduced to ``size`` where it is larger
    (bicubic, antialiased; a map by nearest neighbour). What was changed is upright, 8-bit RGB, transparency over white.
    Raises InputError for values out of range.
    """

    size: int | None = None
    crop: bool = False
    format: str | None = None
    """One of ``FORMATS``; None: each file's own."""
    quality: int = 95
    """Of JPEG (without chroma subsampling) and WebP, 1 to 100."""
    min_size: int = 0
    """Images whose short side is smaller are left out."""
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise InputError(f"format: expected one of {', '.join(FORMATS)}, got '{self.format}'")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality: expected 1 to 100, got {self.quality}")
        if self.size is not None and self.size < 1:
            raise InputError(f"size: expected at least 1 pixel, got {self.size}")
        if self.min_size < 0 or self.max_pixels < 1:
            raise InputError(f"expected min_size >= 0 and max_pixels >= 1, got {self.min_size} and {self.max_pixels}")

    def __call__(self, data: bytes, map_data: bytes | None = None) -> Picture:
        """Raises BrokenSampleError where the image or its map cannot be used, LeftOutError where it is too small."""
        pixels = decode_rgb(data, self.max_pixels)
        height, width, _ = pixels.shape
        if min(height, width) < self.min_size:
            raise LeftOutError("too small", f"{width}x{height} pixels, the short side is below {self.min_size}")
        values = None if map_data is None else _map_values(map_data, height, width)
        image, values = self._fitted(pixels, values)
        own = _kind(data)
        extension = self.format or own
        if image.size != (width, height) and values is not None:
            map_data = _encode(Image.fromarray(values), "png", self.quality)
        if image.size != (width, height) or extension != own:
            data = _encode(image, extension, self.quality)
        return Picture(extension, data, image.height, image.width, height, width, map_data)

    def _fitted(self, pixels: np.ndarray, values: np.ndarray | None) -> tuple[Image.Image, np.ndarray | None]:
        height, width, _ = pixels.shape
        edge = min(height, width)
        if self.crop:
            top, left = (height - edge) // 2, (width - edge) // 2
            square = slice(top, top + edge), slice(left, left + edge)
            pixels, values = pixels[square], None if values is None else values[square]
            height, width = edge, edge
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if self.size is None or edge <= self.size:
            return image, values
        scale = self.size / edge
        width, height = (max(self.size, round(length * scale)) for length in (width, height))
        if values is not None:
            rows, columns = nearest(values.shape[0], height), nearest(values.shape[1], width)
            values = values[rows][:, columns]
        return image.resize((width, height), Image.Resampling.BICUBIC), values


def _map_values(data: bytes, height: int, width: int) -> np.ndarray:
    try:
        return decode_map(data, height, width)
    except InputError as error:
        raise BrokenSampleError(f"the .{MAP_EXTENSION} beside it {error}") from error


def _kind(data: bytes) -> str:
    """Extension of a file that is known to be JPEG, PNG or WebP, from its first bytes."""
    return "jpg" if data[:2] == b"\xff\xd8" else "png" if data[:4] == b"\x89PNG" else "webp"


def _encode(image: Image.Image, extension: str, quality: int) -> bytes:
    name, options = _ENCODERS[extension]
    file = io.BytesIO()
    image.save(file, format=name, quality=quality, **options)
    return file.getvalue()
