"""What samples were made from, as pictures and texts to stand beside them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from latentdiff.types import UNLABELLED, Batch

HOLE, HOLE_SQUARE = (96, 160), 4
"""What is to be made is a chessboard of these grey levels with squares of as many pixels: no part of an image."""
GOLDEN_TURN = 0.61803398875
"""Share of the colour circle between the hues of neighbouring classes."""


def condition_pictures(batch: Batch, size: tuple[int, int] | None = None) -> list[Tensor]:
    """The image with its hole as a chessboard, the map in colours, the small image enlarged: what the batch has.

    Each uint8 (B, 3, H, W), in this order.

    Args:
        size: (H, W) of the results; None: the batch's own images', maps' or masks', else the small images'.
    """
    known = (batch.image, batch.segmentation, batch.mask, batch.low_res)
    sizes = [size] if size else [tuple(one.shape[-2:]) for one in known if one is not None]
    pictures = []
    if batch.mask is not None:
        pictures.append(_with_hole(batch.image, batch.mask))
    if batch.segmentation is not None:
        pictures.append(coloured(batch.segmentation))
    if batch.low_res is not None:
        pictures.append(batch.low_res)
    return [_enlarged(picture.cpu(), sizes[0]) for picture in pictures]


def condition_texts(
    batch: Batch, *, captions: bool, labels: bool, class_names: Sequence[str] | None = None
) -> list[str] | None:
    """One text per sample: its caption, its class, or both, whichever the model reads; None where it reads neither."""
    parts = []
    if captions and batch.caption is not None:
        parts.append(batch.caption)
    if labels and batch.label is not None:
        parts.append([_class_name(int(label), class_names) for label in batch.label])
    return [", ".join(filter(None, one)) for one in zip(*parts)] if parts else None


def beside_inputs(images: Tensor, batch: Batch, texts: list[str] | None) -> tuple[Tensor, list[str] | None, int]:
    """Each image right of its own condition's pictures: cells (N, 3, H, W) in rows of a grid, a text per cell (the
    image's) or None, and the number of cells that belong together."""
    pictures = condition_pictures(batch, tuple(images.shape[-2:]))
    group = len(pictures) + 1
    cells = torch.stack([*pictures, images.cpu()], dim=1).flatten(0, 1)
    blank = [""] * len(pictures)
    return cells, None if texts is None else [cell for text in texts for cell in (*blank, text)], group


def coloured(segmentation: Tensor) -> Tensor:
    """uint8 maps (B, H, W) -> uint8 (B, 3, H, W): class 0 dark grey, the others in colours, unlabelled white."""
    return _palette().to(segmentation.device)[segmentation.long()].permute(0, 3, 1, 2)


@cache
def _palette() -> Tensor:
    """uint8 (256, 3)."""
    hues = [(i * GOLDEN_TURN) % 1.0 for i in range(256)]
    colours = [colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * (i % 2), 0.95 - 0.3 * (i % 3 == 2)) for i, hue in enumerate(hues)]
    table = (torch.tensor(colours) * 255).round().to(torch.uint8)
    table[0], table[UNLABELLED] = 60, 255
    return table


def _with_hole(image: Tensor | None, mask: Tensor) -> Tensor:
    """The known pixels and the hole; without an image the hole is white, the rest black."""
    if image is None:
        return (mask * 255).expand(-1, 3, -1, -1)
    rows, columns = (torch.arange(side, device=image.device) // HOLE_SQUARE for side in image.shape[-2:])
    board = torch.where((rows[:, None] + columns) % 2 == 0, *HOLE).to(torch.uint8)
    return torch.where(mask.bool(), board, image)


def _enlarged(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """By nearest pixels: what is small shall look so."""
    if tuple(picture.shape[-2:]) == size:
        return picture
    return interpolate(picture.float(), size=size, mode="nearest-exact").to(torch.uint8)


def _class_name(label: int, names: Sequence[str] | None) -> str:
    if label < 0:
        return "no class"
    return names[label] if names is not None and label < len(names) else f"class {label}"
