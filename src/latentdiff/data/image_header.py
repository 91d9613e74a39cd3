"""The size of an image from its header, without decoding it."""

from __future__ import annotations

from PIL import Image

from latentdiff.data.decode import DECODE_ERRORS, FORMATS, ORIENTATION_TAG, opened

_MOST_DECODED = 64_000_000
"""Pillow decodes a PNG to find its orientation: only done below so many pixels."""


def upright_size(data: bytes) -> tuple[int, int]:
    """(height, width) after the EXIF orientation; (0, 0) where the header cannot be read."""
    try:
        with opened(data, FORMATS) as image:
            width, height = image.size
            plain = image.format == "PNG" and (b"eXIf" not in data or width * height > _MOST_DECODED)
            orientation = 1 if plain else image.getexif().get(ORIENTATION_TAG, 1)
    except (*DECODE_ERRORS, Image.DecompressionBombError):
        return 0, 0
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)
