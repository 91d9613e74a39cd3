"""Training samples by the sizes of their images."""

from __future__ import annotations

import logging
import os

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.shard_set import ShardSet

_log = logging.getLogger(__name__)


def fitting(shards: ShardSet, min_size: int | None, max_aspect: float | None) -> ShardSet:
    """Those whose shorter side has at least ``min_size`` pixels and whose longer has at most ``max_aspect`` times as
    many; with either, none of unknown size.

    Raises InputError where no index tells the sizes, and where no sample is left.
    """
    if min_size is None and max_aspect is None:
        return shards
    sides = np.sort(known_sizes(shards, "data.min_size and data.max_aspect"), axis=1)
    small = sides[:, 0] < max(min_size or 0, 1)
    long = ~small & (sides[:, 1] > (max_aspect or np.inf) * np.maximum(sides[:, 0], 1))
    kept = np.flatnonzero(~small & ~long)
    left_out = f"{small.sum()} are below data.min_size={min_size}, {long.sum()} above data.max_aspect={max_aspect}"
    if not len(kept):
        raise InputError(f"data.train: none of {len(shards)} samples is left: {left_out}; relax these keys")
    _log.warning("%d of %d training samples are left: %s", len(kept), len(shards), left_out)
    return shards.select(kept)


def known_sizes(shards: ShardSet, key: str) -> np.ndarray:
    """int32 (samples, 2): height and width of each image, 0 where its header cannot be read. Raises InputError, naming
    the ``key`` that needs them, where a shard has no index."""
    sizes = shards.sizes()
    if sizes is None:
        folder = os.path.dirname(shards.table.paths[int(np.argmin(shards.table.indexed))])
        raise InputError(f"{key}: the sizes of the images are not known; run 'latentdiff shards index {folder}'")
    return sizes
