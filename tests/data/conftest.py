"""Small images and shards, made on the spot."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from latentdiff.data.shards import open_shards, write_shards


def encode(pixels, format="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=format, **options)
    return file.getvalue()


def flat(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def numbered_samples(count: int) -> list[dict]:
    """Sample i is a flat image of value i % 251, captioned 'picture i', labelled i."""
    return [{"png": encode(flat(i % 251)), "txt": f"picture {i}", "json": {"i": i}, "cls": i} for i in range(count)]


@pytest.fixture
def png():
    return encode


@pytest.fixture
def image():
    return flat


@pytest.fixture
def samples():
    return numbered_samples


@pytest.fixture
def make_set(tmp_path):
    """Writes samples to shards and opens them."""

    def make(samples, per_shard=1000, name="set"):
        write_shards(samples, tmp_path / name, per_shard)
        return open_shards(tmp_path / name)

    return make
