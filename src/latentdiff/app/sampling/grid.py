"""What sample.py shows of its images: a grid of the first ones, and grids that move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentdiff.app.sampling.images import Wanted, batch_of
from latentdiff.app.sampling.request import Request
from latentdiff.evaluation.animation import save_animation
from latentdiff.evaluation.grid import PAPER, save_grid
from latentdiff.evaluation.inputs import condition_pictures
from latentdiff.types import Batch

GRID = "grid.png"
MOST_IMAGES = 64
"""Of a grid: the first ones."""
CELL = 128
"""Pixels that smaller images are enlarged to, in whole steps."""
COLUMNS = 4, 8
"""Fewest and most, where there are no pictures in front."""


def save_first(where: Path, wanted: list[Wanted], files: list[str], request: Request) -> int:
    """``grid.png`` from the files: one row per scene, its pictures first where it has some. Returns how many images
    are shown."""
    rows: list[list[int]] = []
    for i, one in enumerate(wanted[:MOST_IMAGES]):
        if i == 0 or not _alike(one, wanted[i - 1]):
            rows.append([])
        rows[-1].append(i)
    size = wanted[0].size
    shown = _pictures(batch_of([wanted[row[0]] for row in rows]), request, size)
    longest = max(map(len, rows))
    columns = len(shown) + longest if shown else min(max(COLUMNS[0], longest), COLUMNS[1])
    cells, texts = [], []
    for at, row in enumerate(rows):
        cells += [*(picture[at] for _, picture in shown), *(_read(where / files[i]) for i in row)]
        texts += [*(name for name, _ in shown), *(wanted[i].caption for i in row)]
        if shown and (missing := longest - len(row)):  # the next row begins with its pictures
            cells += [torch.full_like(cells[0], PAPER)] * missing
            texts += [""] * missing
    save_grid(where / GRID, torch.stack(cells), texts, columns=columns, scale=_scale(size))
    return sum(map(len, rows))


def save_trajectories(where: Path, frames: Tensor, part: list[Wanted], first: int) -> None:
    """Frames (T, N, 3, H, W) of one batch: for each scene a grid of its seeds that moves, see ``trajectories``."""
    for name, (start, end) in trajectories(part, first).items():
        own = frames[:, start:end]
        save_animation(where / name, own, max(COLUMNS[0], end - start), _scale(tuple(own.shape[-2:])))


def trajectories(part: list[Wanted], first: int) -> dict[str, tuple[int, int]]:
    """Files of a batch, ``trajectory-0000.png``, named by the number of their first image -> its images in the batch,
    from and to; ``first`` is the number of the batch's first."""
    starts = [i for i, one in enumerate(part) if i == 0 or not _alike(one, part[i - 1])]
    return {f"trajectory-{first + start:04d}.png": (start, end) for start, end in zip(starts, [*starts[1:], len(part)])}


def _alike(one: Wanted, other: Wanted) -> bool:
    """Whether they differ in their seeds at most."""
    return replace(one.scene, seed=None, source=None) == replace(other.scene, seed=None, source=None)


def _read(path: Path) -> Tensor:
    with Image.open(path) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)


def _scale(size: tuple[int, int]) -> int:
    return max(1, CELL // size[1])


def _pictures(batch: Batch, request: Request, size: tuple[int, int]) -> list[tuple[str, Tensor]]:
    """What the scenes were made from, uint8 (scenes, 3, H, W) each, with a word for it."""
    start = [] if request.strength is None else [("image", batch.image)]
    conditions = condition_pictures(batch, size)
    return [*start, *zip(["given"] * len(conditions), conditions)]
