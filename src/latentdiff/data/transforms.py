"""A decoded image to the square the network trains on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from latentdiff.data.conditions import Frame


class SquareCrop:
    """Crops the largest square, then resizes it to ``size`` x ``size`` (bicubic, antialiased).

    The crop is the centre one, or with ``random_crop`` anywhere along the long side. ``flip`` mirrors half of the
    images; leave it off where captions may speak of left and right. Maps follow by ``Frame.lay``.
    """

    def __init__(self, *, size: int, random_crop: bool = False, flip: bool = False) -> None:
        self.size = size
        self.random_crop = random_crop
        self.flip = flip

    def __call__(self, pixels: np.ndarray, where: float, side: float) -> Tensor:
        """uint8 (H, W, 3) -> uint8 (3, size, size); for ``where`` and ``side`` see ``frame``."""
        return self.cut(pixels, self.frame(*pixels.shape[:2], where, side))

    def frame(self, height: int, width: int, where: float, side: float) -> Frame:
        """What is cut from an image of this size. ``where`` and ``side`` are in [0, 1): the crop's position, of
        which 0.5 is the centre, and the mirroring below 0.5; each counts only where its option is on."""
        edge = min(height, width)
        slack = max(height, width) - edge
        start = int(where * (slack + 1)) if self.random_crop else slack // 2
        top, left = (start, 0) if height > width else (0, start)
        return Frame(height, width, top, left, edge, mirrored=self.flip and side < 0.5, size=self.size)

    def cut(self, pixels: np.ndarray, frame: Frame) -> Tensor:
        """The frame's square, mirrored where the frame is, and resized: uint8 (3, size, size)."""
        square = pixels[frame.top : frame.top + frame.edge, frame.left : frame.left + frame.edge]
        if frame.mirrored:
            square = square[:, ::-1]
        image = torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1)
        if frame.edge == self.size:
            return image
        size = (self.size, self.size)
        return interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
