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
        left = frame.width - frame.left - frame.edge if frame.mirrored else frame.left
        corner = [round(place * frame.size / frame.edge) for place in (frame.top, left)]
        return torch.tensor([frame.height, frame.width, *corner, frame.size, frame.size], dtype=torch.int64)
