"""The pictures that sample.py is given, as fields of a batch."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from latentdiff.app.sampling.request import Reads, Scene
from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError, decode_map, decode_rgb
from latentdiff.data.transforms import CoverCrop
from latentdiff.types import UNLABELLED

WHITE = 128
"""A mask's gray level from which on a pixel is to be made."""
COLOUR, GREY = 32, (64, 192)
"""How much a pixel's channels differ where it has a colour; levels that are neither dark nor light."""
MANY = 0.1
"""Share of such pixels from which on a picture is no mask: the edges of a small one are a twentieth of it."""


def read_fields(scene: Scene, reads: Reads, size: tuple[int, int]) -> dict[str, Tensor]:
    """Names of fields of ``Batch`` -> one sample's value, cut as the training data were without chance: the largest
    centre part of the shape of ``size`` (height H, width W), resized to that.

    - ``image`` uint8 (3, H, W); the model that reads ``low_res`` (3, H / factor, W / factor) has none.
    - ``mask`` uint8 (1, H, W), 1 where the mask is light. ``segmentation`` uint8 (H, W).
    - ``numbers``: float32 (1,).
    - ``size``: as of an image that was stored at this size and is shown whole.

    Raises InputError for a file that cannot be read, a mask or map of another size than the image, a picture that is
    no mask or a mask without hole, a map with unknown classes, and a small image that is larger than the result.
    """
    found: dict[str, Tensor] = {}
    shape = None
    if scene.image is not None:
        pixels = _decoded("image", scene.image)
        shape = pixels.shape[:2]
        if "low_res" in reads.fields:
            found["low_res"] = _small(scene.image, pixels, size, reads.fields["low_res"].factor)
        else:
            found["image"] = CoverCrop(size=size)(pixels, 0.5, 0.5)
    if scene.mask is not None:
        found["mask"] = _mask(scene.mask, shape, size)
    if "segmentation" in reads.fields:
        maker = reads.fields["segmentation"]
        if scene.map is None:
            found["segmentation"] = maker.edges(found["image"])
        else:
            found["segmentation"] = _map(scene.map, shape, size, maker.classes)
    if scene.numbers is not None:
        found["numbers"] = torch.tensor([float(scene.numbers)])
    if "size" in reads.fields:
        found["size"] = torch.tensor([*size, 0, 0, *size])
    return found


def _decoded(key: str, path: Path) -> np.ndarray:
    """uint8 (H, W, 3)."""
    try:
        return decode_rgb(path.read_bytes())
    except (OSError, BrokenSampleError) as error:
        raise InputError(f"{key}: '{path}' cannot be used: {error}") from error


def _small(path: Path, pixels: np.ndarray, size: tuple[int, int], factor: int) -> Tensor:
    if any(side % factor for side in size):
        raise InputError(
            f"size: the model enlarges {factor} times; expected multiples of that, got {size[0]}x{size[1]}"
        )
    (height, width), (high, wide) = pixels.shape[:2], (side // factor for side in size)
    scale = min(height / high, width / wide)
    if not 1 <= scale <= factor:
        raise InputError(
            f"image: '{path}' is {width}x{height} pixels; expected a small image: {wide}x{high} pixels, or up to the "
            f"{size[1]}x{size[0]} of the result, which is reduced to that"
        )
    return CoverCrop(size=(high, wide))(pixels, 0.5, 0.5)


def _mask(path: Path, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    with suppress(OSError), Image.open(path) as opened:  # what cannot be opened is said below
        if opened.has_transparency_data:
            raise InputError(f"mask: '{path}' has transparency; save it in black and white, without an alpha channel")
    pixels = _decoded("mask", path)
    _check_mask(path, pixels)
    light = pixels.max(axis=2) >= WHITE
    if light.shape != shape:
        (height, width), (image_height, image_width) = light.shape, shape
        raise InputError(
            f"mask: '{path}' is {width}x{height} pixels, its image {image_width}x{image_height}; "
            "make the mask as large as the image"
        )
    hole = _laid(light, size)
    if not hole.any():
        raise InputError(f"mask: '{path}' has no white inside the centre part that is used: nothing is to be made")
    return hole[None]


def _check_mask(path: Path, pixels: np.ndarray) -> None:
    """Raises InputError for a picture that is no mask. Soft edges and the noise of JPEG pass."""
    lightest, darkest = pixels.max(axis=2), pixels.min(axis=2)
    colour, grey = (lightest - darkest > COLOUR).mean(), ((lightest >= GREY[0]) & (lightest < GREY[1])).mean()
    if colour > MANY or grey > MANY:
        came = f"{colour:.0%} of its pixels have a colour" if colour > MANY else f"{grey:.0%} of its pixels are grey"
        raise InputError(
            f"mask: '{path}' is no mask: {came}; expected black and white, white where the image is to be made anew"
        )


def _map(path: Path, shape: tuple[int, int] | None, size: tuple[int, int], classes: int) -> Tensor:
    try:
        data = path.read_bytes()
        values = decode_map(data, *(shape or _stored_size(data)))
    except (OSError, Image.DecompressionBombError, BrokenSampleError) as error:
        raise InputError(f"map: '{path}' cannot be used: {error}") from error
    except InputError as error:
        raise InputError(f"map: '{path}' {error}") from error
    wrong = values[(values >= classes) & (values != UNLABELLED)]
    if wrong.size:
        raise InputError(
            f"map: '{path}' holds the class {wrong.max()} in {wrong.size} of its pixels; expected 0 to {classes - 1}, "
            f"or {UNLABELLED} for none"
        )
    return _laid(values, size)


def _stored_size(data: bytes) -> tuple[int, int]:
    """Height and width in the header."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            return opened.height, opened.width
    except UnidentifiedImageError as error:
        raise BrokenSampleError("it is no PNG") from error


def _laid(values: np.ndarray, size: tuple[int, int]) -> Tensor:
    return CoverCrop(size=size).frame(*values.shape, 0.5, 0.5).lay(values.astype(np.uint8))
