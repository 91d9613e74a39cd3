"""Maps of classes beside the images, and maps of edges made from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.data.blur import gaussian_blur, weighted_rows
from latentdiff.data.conditions import Frame
from latentdiff.data.decode import decode_map
from latentdiff.data.sample import Sample, check_present
from latentdiff.data.shard_set import ShardSet
from latentdiff.types import UNLABELLED

MAP_EXTENSION = "seg.png"
_SMOOTH, _SLOPE = [0.25, 0.5, 0.25], [-0.5, 0.0, 0.5]
"""Sobel's operator, in units per pixel: smooth along an edge, differentiate across it."""


class SegmentationMaps:
    """uint8 (H, W): the class of each pixel, from the sample's ``.seg.png``; ``UNLABELLED`` where it has none.

    The map is a gray or palette PNG whose pixel value, not colour, is the class: 0 to ``classes`` - 1, or
    ``UNLABELLED``. It has the size of the image as it is seen, after the image's EXIF orientation.

    With ``require`` every sample must have one: those without are refused by ``check``. Without it they are
    ``UNLABELLED`` everywhere. Raises InputError for a number of classes outside 1 to 255, and, when called, for a map
    in colours, of another size or with other values; BrokenSampleError for a damaged one.
    """

    def __init__(self, *, classes: int, require: bool = True) -> None:
        if not 1 <= classes <= UNLABELLED:
            raise InputError(f"SegmentationMaps: expected 1 to {UNLABELLED} classes, got {classes}")
        self.classes = classes
        self.require = require

    def check(self, shards: ShardSet) -> None:
        if self.require:
            remedy = (
                "set require=false of SegmentationMaps in the conditioner's 'conditions' to take them as unlabelled"
            )
            check_present(shards, shards.has(MAP_EXTENSION), f"segmentation map (.{MAP_EXTENSION})", remedy)

    def __call__(self, sample: Sample, frame: Frame, image: Tensor, rng: np.random.Generator) -> Tensor:
        data = sample.read(MAP_EXTENSION)
        if not data:
            return torch.full((frame.out_height, frame.out_width), UNLABELLED, dtype=torch.uint8)
        try:
            values = decode_map(data, frame.height, frame.width)
        except InputError as error:
            raise InputError(f"the .{MAP_EXTENSION} of sample {sample.where} {error}") from error
        self._check_values(values, sample.where)
        return frame.lay(values.astype(np.uint8))

    def _check_values(self, values: np.ndarray, where: str) -> None:
        wrong = values[(values >= self.classes) & (values != UNLABELLED)]
        if wrong.size:
            raise InputError(
                f"the .{MAP_EXTENSION} of sample {where} holds the class {wrong.max()} in {wrong.size} of its pixels; "
                f"expected 0 to {self.classes - 1}, or {UNLABELLED} where there is none; mend the map or change "
                "the number of classes"
            )


class EdgeMaps:
    """uint8 (H, W): 1 at edges of the training image, 0 elsewhere; needs no annotation.

    Each colour channel is blurred (``blur``: sigma in pixels, 0 for none) and differentiated by Sobel's operator, in
    gray levels per pixel; an edge is where the largest of the three magnitudes exceeds ``threshold``. Across a step
    of height s that magnitude is s / 2 in the two columns beside it without blur, 0.32 s with a blur of 1. There is no
    thinning.
    """

    classes = 2

    def __init__(self, *, blur: float = 1.0, threshold: float = 10.0) -> None:
        if blur < 0 or threshold <= 0:
            raise InputError(f"EdgeMaps: expected blur of at least 0 and threshold above 0, got {blur=}, {threshold=}")
        self.blur = blur
        self.threshold = threshold

    def check(self, shards: ShardSet) -> None:
        """Every sample has an image."""

    def __call__(self, sample: Sample, frame: Frame, image: Tensor, rng: np.random.Generator) -> Tensor:
        return self.edges(image)

    def edges(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (H, W)."""
        smooth = gaussian_blur(image.float(), self.blur)
        down = weighted_rows(weighted_rows(smooth.mT, _SMOOTH).mT, _SLOPE)
        across = weighted_rows(weighted_rows(smooth, _SMOOTH).mT, _SLOPE).mT
        return ((down.square() + across.square()).amax(0) > self.threshold**2).to(torch.uint8)
