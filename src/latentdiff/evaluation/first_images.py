"""The picture of an evaluation: its first images, with what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.evaluation.grid import COMPARISON, comparison, save_grid
from latentdiff.evaluation.inputs import beside_inputs, condition_texts
from latentdiff.types import Batch

COLUMNS = 8
"""Cells in a row of the grid, or as many as whole groups of an image and its inputs fill."""
LEAST_SIDE = 128
"""Pixels to which smaller images are enlarged."""


class FirstImages:
    """Keeps the first ``room`` images that ``keep`` is given, and their samples."""

    def __init__(self, room: int):
        self.room = room
        self.images: list[Tensor] = []
        self.batches: list[Batch] = []

    def keep(self, images: Tensor, batch: Batch) -> None:
        """As ``engine.evaluate`` calls its ``on_images``."""
        count = min(self.room, len(images))
        if count:
            self.room -= count
            self.images.append(images[:count].cpu())
            self.batches.append(batch.rows(0, count))

    def save(self, path: Path, *, captions: bool, labels: bool, class_names: Sequence[str] | None = None) -> None:
        """Each image right of its inputs' pictures, above its caption and class where the model reads them."""
        cells, texts, group = [], [], 1
        for images, batch in zip(self.images, self.batches):
            written = condition_texts(batch, captions=captions, labels=labels, class_names=class_names)
            part, text, group = beside_inputs(images, batch, written)
            cells.append(part)
            texts += [""] * len(part) if text is None else text
        together = torch.cat(cells)
        columns = min(len(together), max(1, COLUMNS // group) * group)
        named = texts if any(texts) else None
        save_grid(path, together, captions=named, columns=columns, scale=_scale(together))

    def save_comparison(self, path: Path) -> None:
        """The images as reconstructions below their originals. Raises InputError where a batch had none."""
        originals = [batch.image for batch in self.batches if batch.image is not None]
        if len(originals) != len(self.batches):
            raise InputError("reconstructions are shown beside their originals, the batch has none")
        images = torch.cat(self.images)
        columns = min(COLUMNS, len(images))
        cells = comparison(torch.cat(originals), images, columns)
        save_grid(path, cells, columns=columns, scale=_scale(images), text=COMPARISON)


def _scale(images: Tensor) -> int:
    return max(1, LEAST_SIDE // images.shape[-1])
