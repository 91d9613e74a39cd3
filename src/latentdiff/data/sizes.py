"""The size of the original and the place of the crop, as a condition."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latentdiff.data.conditions import Frame
from latentdiff.data.sample import Sample
from latentdiff.data.shard_set import ShardSet


class SizeAndCrop:
    """int64 (6,): height and width of the original, top and left of the crop, height and width of the result
    (SDXL, arXiv:2307.01952, section 2.2).

    SDXL crops after resizing, so the crop's corner is given in pixels of the result's scale, rounded. That of a
    mirrored image is its place in the mirrored original: what is cut off on the left is cut off on the left of what
    the network sees.
    """

    def check(self, shards: ShardSet) -> None:
        """Every sample has a size."""

    def __call__(self, sample: Sample, frame: Frame, image: Tensor, rng: np.random.Generator) -> Tensor:
        left = frame.width - frame.left - frame.crop_width if frame.mirrored else frame.left
        top = round(frame.top * frame.out_height / frame.crop_height)
        left = round(left * frame.out_width / frame.crop_width)
        return torch.tensor([frame.height, frame.width, top, left, frame.out_height, frame.out_width])
