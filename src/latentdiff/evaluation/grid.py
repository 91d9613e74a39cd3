"""Images side by side, with captions that can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from latentdiff.durable import new_file

PAPER, INK = 255, (20, 20, 20)
FONT_SIZE, LINE_GAP = 11, 2
DIFFERENCE_FACTOR = 4
COMPARISON = f"rows: input, reconstruction, 127.5 + {DIFFERENCE_FACTOR} (reconstruction - input)"
"""What ``comparison`` shows, for the text of its PNG."""


def image_grid(images: Tensor, columns: int, pad: int = 2) -> Tensor:
    """uint8 (N, 3, H, W) -> uint8 (3, rows (H + pad) + pad, columns (W + pad) + pad), row by row on white."""
    _check(images, columns)
    count, _, height, width = images.shape
    rows = -(-count // columns)
    grid = torch.full((3, rows * (height + pad) + pad, columns * (width + pad) + pad), PAPER, dtype=torch.uint8)
    for i, image in enumerate(images.cpu()):
        top, left = (pad + (i // columns) * (height + pad)), (pad + (i % columns) * (width + pad))
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_grid(
    path: str | Path,
    images: Tensor,
    captions: list[str] | None = None,
    columns: int = 4,
    scale: int = 1,
    pad: int = 4,
    text: str | None = None,
) -> None:
    """A PNG of uint8 images (N, 3, H, W), enlarged ``scale`` times without smoothing, each above its wrapped caption.

    ``text`` says what it shows, in the file's own text field "Description". The file appears whole or not at all; its
    folder is made.
    """
    _check(images, columns)
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"one caption per image is needed; got {len(captions)} for {len(images)} images")
    cells = images.cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    if captions is not None:
        cells = torch.cat([cells, _captions(captions, cells.shape[-1])], dim=2)
    picture = Image.fromarray(image_grid(cells, min(columns, len(cells)), pad).permute(1, 2, 0).numpy())
    about = PngInfo()
    if text is not None:
        about.add_text("Description", text)
    with new_file(path) as staged:
        picture.save(staged, format="PNG", pnginfo=about)


def comparison(originals: Tensor, reconstructions: Tensor, columns: int) -> Tensor:
    """Rows of originals, of their reconstructions and of the differences, again and again: uint8 (3 N', 3, H, W).

    Both uint8 (N, 3, H, W); cells for a grid of ``columns``, N' is N filled up with white to whole rows. Differences
    are amplified ``DIFFERENCE_FACTOR`` times around grey, so that their sign can be seen.
    """
    originals, reconstructions = originals.cpu(), reconstructions.cpu()
    _check(originals, columns)
    if originals.shape != reconstructions.shape:
        raise ValueError(f"expected one shape; got {tuple(originals.shape)} and {tuple(reconstructions.shape)}")
    difference = 127.5 + DIFFERENCE_FACTOR * (reconstructions.float() - originals.float())
    rows = (originals, reconstructions, difference.round().clamp(0, 255).byte())
    blocks = []
    for start in range(0, len(originals), columns):
        for row in rows:
            part = row[start : start + columns]
            blank = part.new_full((columns - len(part), *part.shape[1:]), PAPER)
            blocks.append(torch.cat([part, blank]))
    return torch.cat(blocks)


def wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """Lines of at most ``width`` pixels, broken between words, and inside a word that alone is too long."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _captions(captions: list[str], width: int) -> Tensor:
    """The captions as images (N, 3, height of the longest, width)."""
    font = ImageFont.load_default(FONT_SIZE)
    lines = [wrapped(caption, width, font) for caption in captions]
    line_height = FONT_SIZE + LINE_GAP
    height = max(1, max(len(one) for one in lines)) * line_height + LINE_GAP
    pictures = []
    for one in lines:
        picture = Image.new("RGB", (width, height), (PAPER, PAPER, PAPER))
        ImageDraw.Draw(picture).multiline_text((0, LINE_GAP), "\n".join(one), fill=INK, font=font, spacing=LINE_GAP)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(pictures)


def _check(images: Tensor, columns: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"expected uint8 images (N, 3, H, W), N >= 1; got {images.dtype} {tuple(images.shape)}")
    if columns < 1:
        raise ValueError(f"a grid needs at least 1 column; got {columns}")
