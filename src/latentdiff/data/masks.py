"""Random masks of what an inpainting model has to make."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import Frame
from latentdiff.data.sample import Sample
from latentdiff.data.shard_set import ShardSet

_TRIES = 20
_NARROWEST = 0.1
_BOX_EDGE = (0.12, 0.6)
_STROKE_STEPS = (3, 9)
_STROKE_WIDTH = (0.05, 0.2)
_STROKE_LENGTH = (0.1, 0.4)
_STROKE_TURN = (np.pi / 6, 5 * np.pi / 6)
_BAND_DEPTH = (1 / 8, 3 / 8)
"""Lengths are shares of the image's height or width, those of strokes of the shorter."""


class RandomMasks:
    """uint8 (1, H, W), 1 where the image is to be made: a mixture of three laws.

    - boxes: 1 to ``most_boxes`` rectangles, each edge uniform in 0.12 .. 0.6 of the image's, anywhere inside it (as the
      box masks of LaMa, arXiv:2109.07161, section 2.4, which LDM trains its inpainting with).
    - strokes: 1 to ``most_strokes`` chains of 3 to 9 thick segments with round joints, one after the other turning left
      and right by 30 to 150 degrees; width uniform in 0.05 .. 0.2, each length in 0.1 .. 0.4, ends kept inside (after
      the free-form masks of arXiv:1806.03589).
    - outpainting: bands along one to four sides, each number equally likely, then each choice of sides; each depth
      uniform in 1/8 .. 3/8. With four sides what is known is a part in the middle.

    The law is chosen by the weights ``boxes``, ``strokes`` and ``outpainting``, which need not sum to 1. Its masks are
    drawn until the hole's share of the pixels lies in ``min_share`` .. ``max_share``; after 20 masks outside, a box is
    taken whose share is uniform in that range and whose place is uniform.

    Raises InputError for negative or no weights, counts below 1, and a range of shares narrower than 0.1.
    """

    def __init__(
        self,
        *,
        boxes: float = 1.0,
        strokes: float = 1.0,
        outpainting: float = 1.0,
        most_boxes: int = 4,
        most_strokes: int = 4,
        min_share: float = 0.1,
        max_share: float = 0.75,
    ) -> None:
        weights = np.array([boxes, strokes, outpainting], dtype=np.float64)
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
            raise InputError(
                f"RandomMasks: expected weights of at least 0, one above 0, got {boxes=}, {strokes=}, {outpainting=}"
            )
        if min(most_boxes, most_strokes) < 1:
            raise InputError(f"RandomMasks: expected counts of at least 1, got {most_boxes=}, {most_strokes=}")
        if not (min_share >= 0 and max_share <= 1 and max_share - min_share >= _NARROWEST - 1e-9):
            raise InputError(
                f"RandomMasks: expected 0 <= min_share and max_share <= 1 at least {_NARROWEST} apart, "
                f"got {min_share=}, {max_share=}"
            )
        self.most_boxes = most_boxes
        self.most_strokes = most_strokes
        self.min_share = min_share
        self.max_share = max_share
        self._laws = (self.boxes, self.strokes, self.outpainting)
        self._up_to = np.cumsum(weights / weights.sum())

    def check(self, shards: ShardSet) -> None:
        """Masks need no file."""

    def __call__(self, sample: Sample, frame: Frame, image: Tensor, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(self.draw(frame.out_height, frame.out_width, rng))[None]

    def draw(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 (height, width)."""
        law = self._laws[min(int(np.searchsorted(self._up_to, rng.random(), side="right")), len(self._laws) - 1)]
        for _ in range(_TRIES):
            mask = law(height, width, rng)
            if self.min_share <= mask.mean() <= self.max_share:
                return mask
        return self._fitting_box(height, width, rng)

    def boxes(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 (height, width): boxes, whatever their share."""
        mask = np.zeros((height, width), np.uint8)
        for _ in range(rng.integers(1, self.most_boxes + 1)):
            edges = np.maximum(1, np.rint(rng.uniform(*_BOX_EDGE, 2) * (height, width))).astype(int)
            _fill_somewhere(mask, *edges, rng)
        return mask

    def strokes(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 (height, width): free-form strokes, whatever their share."""
        canvas = Image.new("L", (width, height))
        draw = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(1, self.most_strokes + 1)):
            thick = max(1, round(rng.uniform(*_STROKE_WIDTH) * min(height, width)))
            points = _chain(height, width, rng)
            draw.line([tuple(point) for point in points], fill=1, width=thick)
            for x, y in points:
                draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=1)
        return np.array(canvas)

    def outpainting(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 (height, width): bands along sides, whatever their share."""
        sides = rng.permutation(4)[: rng.integers(1, 5)]
        depths = np.zeros(4, dtype=int)
        lengths = np.array([height, height, width, width])[sides]
        depths[sides] = np.maximum(1, np.rint(rng.uniform(*_BAND_DEPTH, len(sides)) * lengths)).astype(int)
        top, bottom, left, right = depths
        mask = np.ones((height, width), np.uint8)
        mask[top : height - bottom, left : width - right] = 0
        return mask

    def _fitting_box(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """A box of nearly the image's shape; rounding its edges moves the share by less than half a column, which is
        left free."""
        spare = min(0.5 / width, (self.max_share - self.min_share) / 2)
        share = rng.uniform(self.min_share + spare, self.max_share - spare)
        high = max(1, round(share**0.5 * height))
        wide = min(width, round(share * height * width / high))
        mask = np.zeros((height, width), np.uint8)
        _fill_somewhere(mask, high, wide, rng)
        return mask


def _fill_somewhere(mask: np.ndarray, high: int, wide: int, rng: np.random.Generator) -> None:
    height, width = mask.shape
    top, left = rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1)
    mask[top : top + high, left : left + wide] = 1


def _chain(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Corners (steps + 1, 2) of one stroke, x and y in pixels, inside the image."""
    steps = int(rng.integers(_STROKE_STEPS[0], _STROKE_STEPS[1] + 1))
    turns = rng.uniform(*_STROKE_TURN, steps) * np.where(np.arange(steps) % 2 == 0, 1, -1)
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(turns)
    lengths = rng.uniform(*_STROKE_LENGTH, steps) * min(height, width)
    points = np.empty((steps + 1, 2))
    points[0] = rng.uniform(0, (width, height))
    for step in range(steps):
        move = lengths[step] * np.array([np.cos(headings[step]), np.sin(headings[step])])
        points[step + 1] = np.clip(points[step] + move, 0, (width - 1, height - 1))
    return points
