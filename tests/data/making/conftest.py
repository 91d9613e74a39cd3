"""Sources of a few small images, all different."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentdiff.data.making.source import ImageSource
from latentdiff.data.making.writer import Summary, make_shards
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shards import open_shards


@pytest.fixture
def pictures(tmp_path, png, image) -> Path:
    """A folder with ``0.png`` ... ``3.png``, flat, 8 high and 12 wide."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(image(10 * i, 8, 12)))
    return folder


@pytest.fixture
def made(tmp_path) -> Callable[[ImageSource], tuple[ShardSet, Summary]]:
    """The shards of a source, made by this process alone."""

    def make(source: ImageSource, **options) -> tuple[ShardSet, Summary]:
        summary = make_shards(source, tmp_path / "made", processes=1, **options)
        return open_shards(tmp_path / "made"), summary

    return make


@pytest.fixture
def entries() -> Callable[[ShardSet], list[dict]]:
    """The ``.json`` of every sample."""
    return lambda shards: [json.loads(shards.read(i, "json")) for i in range(len(shards))]


@pytest.fixture
def noise() -> Callable[[int], np.ndarray]:
    return lambda seed: np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
