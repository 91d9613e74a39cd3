"""Where training and validation samples come from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.shapes_set import prepare_shapes, shapes_folder
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shards import open_shards

_log = logging.getLogger(__name__)

HELD_BACK_LEAST, HELD_BACK_MOST = 16, 1000


class Source(Protocol):
    """Training and validation samples."""

    name: str

    def prepare(self) -> None:
        """Makes what has to be made on disk once; called in one process per machine."""

    def open(self) -> tuple[ShardSet, ShardSet]:
        """(training set, validation set); called in every process after ``prepare``."""

    def fingerprint(self) -> str:
        """Hex digest of the training data, by which a fitting first stage is found."""


class ShardSource:
    """WebDataset shards. ``train`` and ``val`` are a folder, a pattern or a list, see ``shards.open_shards``.

    With ``val`` None a part of ``train`` is held back for validation: ``held_back`` of it, though 16 to 1000 samples
    and never more than half, those with the smallest hash of their key; it depends on the keys alone.
    """

    def __init__(
        self,
        *,
        train: str | Sequence[str],
        val: str | Sequence[str] | None = None,
        held_back: float = 0.05,
        name: str = "webdataset",
    ) -> None:
        if not 0 < held_back <= 0.5:
            raise InputError(f"data.module.source.held_back must be above 0 and at most 0.5, got {held_back}")
        self.train = train
        self.val = val
        self.held_back = held_back
        self.name = name

    def prepare(self) -> None:
        """Shards are there already."""

    def open(self) -> tuple[ShardSet, ShardSet]:
        train = _open("data.train", self.train)
        if self.val is None:
            return split_by_key(train, self.held_back)
        val = _open("data.val", self.val)
        if shared := sorted(set(train.table.paths) & set(val.table.paths)):
            _log.warning("%s is in both data.train and data.val: validation will not show overfitting", shared[0])
        return train, val

    def fingerprint(self) -> str:
        return self.open()[0].fingerprint()


class ShapesSource:
    """The embedded world, drawn into a folder below ``root`` on first use."""

    name = "shapes"

    def __init__(
        self, *, root: str, image_size: int, seed: int = 0, train_samples: int = 10_000, val_samples: int = 1_000
    ) -> None:
        self.root = Path(root)
        self.image_size = image_size
        self.seed = seed
        self.train_samples = train_samples
        self.val_samples = val_samples

    @property
    def folder(self) -> Path:
        return shapes_folder(self.root, self.image_size, self.seed, self.train_samples, self.val_samples)

    def prepare(self) -> None:
        try:
            prepare_shapes(
                self.folder,
                image_size=self.image_size,
                seed=self.seed,
                train_samples=self.train_samples,
                val_samples=self.val_samples,
            )
        except OSError as error:
            raise InputError(f"paths.data: '{self.root}' cannot be written ({error}); name another folder") from error

    def open(self) -> tuple[ShardSet, ShardSet]:
        return open_shards(self.folder / "train"), open_shards(self.folder / "val")

    def fingerprint(self) -> str:
        return self.open()[0].fingerprint()


def _open(key: str, urls: str | Sequence[str]) -> ShardSet:
    try:
        return open_shards(urls)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def split_by_key(shards: ShardSet, held_back: float) -> tuple[ShardSet, ShardSet]:
    """(training part, held-back part), each in the order of the set. Raises InputError for fewer than two samples."""
    total = len(shards)
    if total < 2:
        raise InputError(f"{total} sample cannot be split into training and validation; name data.val or add samples")
    count = min(max(round(held_back * total), HELD_BACK_LEAST), HELD_BACK_MOST, total // 2)
    hashes = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in shards.all_keys()]
    held = np.zeros(total, dtype=bool)
    held[sorted(range(total), key=hashes.__getitem__)[:count]] = True
    return shards.select(np.flatnonzero(~held)), shards.select(np.flatnonzero(held))
