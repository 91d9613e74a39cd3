"""A sample of a shard set as a training image, with its caption, its label and what the conditions make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from latentdiff.data.conditions import Condition, Frame
from latentdiff.data.decode import BrokenSampleError, check_background
from latentdiff.data.labels import Labels
from latentdiff.data.plan import draw_int, draw_uniform
from latentdiff.data.sample import Sample, read_sample
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.transforms import Crops
from latentdiff.diffusion.noise import stable_hash

_CROP, _FLIP, _CAPTION = 1, 2, 3
"""Purposes of a sample's draws."""
_FIXED = (0, -1)
"""Seed and epoch of a condition's draws in evaluation, where they depend on the sample's index and the field alone."""


@dataclass(frozen=True)
class ImageRow:
    """One sample, ready for a batch."""

    image: Tensor
    """uint8 (3, H, W)."""
    caption: str
    label: int
    attributes: dict
    made: dict[str, Tensor]
    """Field of the batch -> what its condition made."""


class ImageReader:
    """Reads, decodes and cuts samples of ``shards``.

    With ``draw`` off the main caption is taken and the crop is the centre one; with it on, caption, crop and mirroring
    depend on (seed, epoch, sample).

    ``conditions`` make further fields of the batch, by its name. Each sample and field has a generator of its own,
    seeded by (seed, epoch, sample, field), with ``draw`` off by (sample, field): the same in every run.

    ``background``: red, green and blue, 0 to 255, that show through transparent pixels.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        transform: Crops,
        seed: int,
        draw: bool = True,
        with_attributes: bool = False,
        require_captions: bool = False,
        labels: Labels | None = None,
        conditions: Mapping[str, Condition] | None = None,
        max_pixels: int = 64_000_000,
        background: Sequence[int] = (255, 255, 255),
    ) -> None:
        check_background(background)
        self.shards = shards
        self.transform = transform
        self.seed = seed
        self.draw = draw
        self.with_attributes = with_attributes
        self.require_captions = require_captions
        self.labels = Labels() if labels is None else labels
        self.conditions = dict(conditions or {})
        self.max_pixels = max_pixels
        self.background = tuple(background)

    def read(self, epoch: int, index: int) -> ImageRow:
        sample = read_sample(self.shards, index, self.max_pixels, self.labels, self.background)
        frame = self._frame(sample, epoch, index)
        image = self.transform.of(index).cut(sample.pixels, frame)
        key = (self.seed, epoch) if self.draw else _FIXED
        made = {}
        for name, condition in self.conditions.items():
            rng = np.random.default_rng(stable_hash(*key, index, name))
            made[name] = condition(sample, frame, image, rng)
        return ImageRow(image, self._caption(sample, epoch, index), sample.label, sample.attributes, made)

    def over(self, shards: ShardSet, seed: int) -> ImageReader:
        """One that reads other samples alike."""
        other = copy(self)
        other.shards, other.seed = shards, seed
        return other

    def collate(self, rows: Sequence[ImageRow]) -> dict[str, Any]:
        """In a worker the tensors are made in the memory that it shares with the main process."""
        return {
            "image": default_collate([row.image for row in rows]),
            "caption": [row.caption for row in rows],
            "label": torch.tensor([row.label for row in rows], dtype=torch.int64),
            "attributes": [row.attributes for row in rows] if self.with_attributes else None,
            **{name: default_collate([row.made[name] for row in rows]) for name in self.conditions},
        }

    def _frame(self, sample: Sample, epoch: int, index: int) -> Frame:
        where, side = 0.5, 1.0
        if self.draw:
            where, side = (draw_uniform(self.seed, epoch, index, purpose) for purpose in (_CROP, _FLIP))
        return self.transform.of(index).frame(*sample.pixels.shape[:2], where, side)

    def _caption(self, sample: Sample, epoch: int, index: int) -> str:
        draws = (self.seed, epoch, index) if self.draw else None
        number = choose_caption(sample.captions, draws, required=self.require_captions)
        return sample.captions[number] if sample.captions else ""


def choose_caption(captions: Sequence[str], draws: tuple[int, int, int] | None, *, required: bool) -> int:
    """Which of a sample's captions ``draws`` (seed, epoch, sample) give, None: the main one.

    Raises BrokenSampleError where captions are ``required`` and there are none.
    """
    if required and not captions:
        raise BrokenSampleError(
            "it has no caption; add it, or set data.module.require_captions=false where the model is not conditioned "
            "on captions"
        )
    return 0 if draws is None or not captions else draw_int(*draws, _CAPTION) % len(captions)


def is_mirrored(seed: int, epoch: int, index: int) -> bool:
    """Whether the sample is mirrored in this epoch, where half of the images are."""
    return draw_uniform(seed, epoch, index, _FLIP) < 0.5
