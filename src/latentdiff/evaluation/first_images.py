"""The picture of an evaluation: its first images, with what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.evaluation.grid import COMPARISON, comparison, save_grid
from latentdiff.evaluation.inputs import beside_inputs, condition_texts
from latentdiff.types import Batch

COLUMNS = 8
"""Cells in a row of the grid, or as many as whole groups of an image and its inputs fill."""
LEAST_SIDE = 128
"""Pixels to which smaller images are enlarged."""


def picture_of_samples(
    path: Path,
    images: Tensor,
    batch: Batch,
    *,
    captions: bool,
    labels: bool,
    class_names: Sequence[str] | None = None,
) -> None:
    """Images, uint8 (B, 3, H, W), made for ``batch``: each right of its inputs' pictures, above its caption and class
    where the model reads them."""
    written = condition_texts(batch, captions=captions, labels=labels, class_names=class_names)
    cells, texts, group = beside_inputs(images, batch, written)
    columns = min(len(cells), max(1, COLUMNS // group) * group)
    named = texts if texts and any(texts) else None
    save_grid(path, cells, captions=named, columns=columns, scale=_scale(cells))


def picture_of_reconstructions(path: Path, images: Tensor, batch: Batch) -> None:
    """The images as reconstructions below their originals, ``batch.image``. Raises InputError where there are none."""
    if batch.image is None:
        raise InputError("reconstructions are shown beside their originals, the batch has none")
    columns = min(COLUMNS, len(images))
    cells = comparison(batch.image, images, columns)
    save_grid(path, cells, columns=columns, scale=_scale(images), text=COMPARISON)


def _scale(images: Tensor) -> int:
    return max(1, LEAST_SIDE // images.shape[-1])
