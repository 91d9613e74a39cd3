"""Grids that move: how images come out of the noise."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from latentdiff.durable import new_file
from latentdiff.evaluation.grid import image_grid

MILLISECONDS, LAST_MILLISECONDS = 120, 1500
"""How long each frame stands, and the last one."""


def save_animation(path: str | Path, frames: Tensor, columns: int, scale: int = 1, pad: int = 4) -> None:
    """An animated PNG of uint8 frames (T, N, 3, H, W), T >= 1, each a grid of its N images, over and over again.

    Images are enlarged ``scale`` times without smoothing. The file appears whole or not at all; its folder is made.
    """
    if frames.ndim != 5 or len(frames) == 0:
        raise ValueError(f"expected frames (T, N, 3, H, W), T >= 1; got {tuple(frames.shape)}")
    frames = frames.cpu().repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
    first, *rest = [
        Image.fromarray(image_grid(frame, min(columns, len(frame)), pad).permute(1, 2, 0).numpy()) for frame in frames
    ]
    duration = [MILLISECONDS] * len(rest) + [LAST_MILLISECONDS]
    with new_file(path) as staged:
        first.save(staged, format="PNG", save_all=True, append_images=rest, duration=duration, loop=0)
