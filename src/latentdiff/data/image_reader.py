"""A sample of a shard set as a training image, with its caption, its label and what the conditions make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import Condition, Frame
from latentdiff.data.labels import Labels
from latentdiff.data.plan import draw_int, draw_uniform
from latentdiff.data.sample import Sample, read_sample
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.transforms import SquareCrop
from latentdiff.diffusion.noise import stable_hash

_CROP, _FLIP, _CAPTION = 1, 2, 3
"""Purposes of a sample's draws."""
_FIXED = (0, -1)
"""Seed and epoch of a condition's draws in evaluation, where they depend on the sample's index and the field alone."""


@dataclass(frozen=True)
class ImageRow:
    """One sample, ready for a batch."""

    sample: Sample
    image: Tensor
    """uint8 (3, size, size)."""
    caption: str
    made: dict[str, Tensor]
    """Field of the batch -> what its condition made."""


class ImageReader:
    """Reads, decodes and cuts samples of ``shards``.

    With ``draw`` off the main caption is taken and the crop is the centre one; with it on, caption, crop and mirroring
    depend on (seed, epoch, sample).

    ``conditions`` make further fields of the batch, by its name. Each sample and field has a generator of its own,
    seeded by (seed, epoch, sample, field), with ``draw`` off by (sample, field): the same in every run.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        transform: SquareCrop,
        seed: int,
        draw: bool = True,
        with_attributes: bool = False,
        require_captions: bool = False,
        labels: Labels | None = None,
        conditions: Mapping[str, Condition] | None = None,
        max_pixels: int = 64_000_000,
    ) -> None:
        self.shards = shards
        self.transform = transform
        self.seed = seed
        self.draw = draw
        self.with_attributes = with_attributes
        self.require_captions = require_captions
        self.labels = Labels() if labels is None else labels
        self.conditions = dict(conditions or {})
        self.max_pixels = max_pixels

    def read(self, epoch: int, index: int) -> ImageRow:
        sample = read_sample(self.shards, index, self.max_pixels, self.labels)
        frame = self._frame(sample, epoch, index)
        image = self.transform.cut(sample.pixels, frame)
        key = (self.seed, epoch) if self.draw else _FIXED
        made = {}
        for name, condition in self.conditions.items():
            rng = np.random.default_rng(stable_hash(*key, index, name))
            made[name] = condition(sample, frame, image, rng)
        return ImageRow(sample, image, self._caption(sample, epoch, index), made)

    def collate(self, rows: Sequence[ImageRow]) -> dict[str, Any]:
        return {
            "image": torch.stack([row.image for row in rows]),
            "caption": [row.caption for row in rows],
            "label": torch.tensor([row.sample.label for row in rows], dtype=torch.int64),
            "attributes": [row.sample.attributes for row in rows] if self.with_attributes else None,
            **{name: torch.stack([row.made[name] for row in rows]) for name in self.conditions},
        }

    def _frame(self, sample: Sample, epoch: int, index: int) -> Frame:
        where, side = 0.5, 1.0
        if self.draw:
            where, side = (draw_uniform(self.seed, epoch, index, purpose) for purpose in (_CROP, _FLIP))
        return self.transform.frame(*sample.pixels.shape[:2], where, side)

    def _caption(self, sample: Sample, epoch: int, index: int) -> str:
        if not sample.captions:
            if self.require_captions:
                raise InputError(
                    f"sample {self.shards.where(index)} has no caption; add it, or set "
                    "data.module.require_captions=false where the model is not conditioned on captions"
                )
            return ""
        choice = draw_int(self.seed, epoch, index, _CAPTION) % len(sample.captions) if self.draw else 0
        return sample.captions[choice]
