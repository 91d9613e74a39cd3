"""A decoded image to the size the network trains on."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from latentdiff.data.conditions import Frame


class Crops(Protocol):
    """How each sample is cut."""

    def of(self, index: int) -> CoverCrop: ...


class CoverCrop:
    """Cuts the largest part of the shape of ``size``, then resizes it to that (bicubic, antialiased).

    ``size``: pixels of a side, or (height, width). The part is the one in the middle, or with ``random_crop`` anywhere
    along the side that has more than is needed. A smaller image is enlarged. ``flip`` mirrors half of the images; leave
    it off where captions may speak of left and right. Maps follow by ``Frame.lay``.
    """

    def __init__(self, *, size: int | tuple[int, int], random_crop: bool = False, flip: bool = False) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.random_crop = random_crop
        self.flip = flip

    def __call__(self, pixels: np.ndarray, where: float, side: float) -> Tensor:
        """uint8 (H, W, 3) -> uint8 (3, height, width); for ``where`` and ``side`` see ``frame``."""
        return self.cut(pixels, self.frame(*pixels.shape[:2], where, side))

    def of(self, index: int) -> CoverCrop:
        """Every sample is cut alike."""
        return self

    def frame(self, height: int, width: int, where: float, side: float) -> Frame:
        """What is cut from an image of this size. ``where`` and ``side`` are in [0, 1): the crop's position, of
        which 0.5 is the centre, and the mirroring below 0.5; each counts only where its option is on."""
        out_height, out_width = self.size
        high, wide = height, width
        if height * out_width > width * out_height:
            high = max(1, round(width * out_height / out_width))
        else:
            wide = max(1, round(height * out_width / out_height))
        slack = height - high + width - wide
        start = int(where * (slack + 1)) if self.random_crop else slack // 2
        top, left = (start, 0) if high < height else (0, start)
        mirrored = self.flip and side < 0.5
        return Frame(height, width, top, left, high, wide, mirrored, out_height, out_width)

    def cut(self, pixels: np.ndarray, frame: Frame) -> Tensor:
        """The frame's part, mirrored where the frame is, and resized: uint8 (3, out_height, out_width)."""
        part = pixels[frame.top : frame.top + frame.crop_height, frame.left : frame.left + frame.crop_width]
        if frame.mirrored:
            part = part[:, ::-1]
        if min(part.strides) < 0:  # torch has no such strides
            part = part.copy()
        image = torch.from_numpy(part).permute(2, 0, 1)
        size = (frame.out_height, frame.out_width)
        if image.shape[1:] == size:
            return image.contiguous()  # not a view that keeps the whole original
        return interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
