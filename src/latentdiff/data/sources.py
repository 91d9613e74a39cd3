"""Where training and validation samples come from."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.filters import fitting
from latentdiff.data.mixing import Mixture
from latentdiff.data.preparation import verify_once
from latentdiff.data.remote import ShardCache
from latentdiff.data.shapes_set import prepare_shapes, shapes_folder
from latentdiff.data.shard_names import expand_urls
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shards import check_damaged, open_shards

_log = logging.getLogger(__name__)

HELD_BACK_LEAST, HELD_BACK_MOST = 16, 1000
_CHUNK = 65_536
"""Samples hashed at a time."""


class Source(Protocol):
    """Training and validation samples."""

    name: str

    def prepare(self) -> None:
        """Makes what has to be made on disk once; called in one process per machine."""

    def open(self) -> tuple[ShardSet, ShardSet]:
        """(training set, validation set); called in every process after ``prepare``."""

    def mixture(self, train: ShardSet) -> Mixture | None:
        """How the samples of ``train`` are mixed; None where each epoch has each once."""


class ShardSource:
    """WebDataset shards. ``train`` and ``val`` are a folder, a pattern or a list, of paths or URLs; for ``damaged`` and
    ``cache`` see ``shards.open_shards``.

    With ``val`` None a part of ``train`` is held back for validation: ``held_back`` of it, though 16 to 1000 samples
    and never more than half, those with the smallest hash of their shard's file name and their key: moving the folder
    changes nothing.

    ``weights``: one per entry of the list ``train``, by which the entries are mixed whatever their sizes.
    ``min_size`` (pixels of the shorter side) and ``max_aspect`` (longer side / shorter side) leave samples of ``train``
    out; they need the sizes in an index, and those that it does not know are left out too.
    """

    def __init__(
        self,
        *,
        train: str | Sequence[str],
        val: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        min_size: int | None = None,
        max_aspect: float | None = None,
        held_back: float = 0.05,
        damaged: str = "stop",
        cache: ShardCache | None = None,
        name: str = "webdataset",
    ) -> None:
        if not 0 < held_back <= 0.5:
            raise InputError(f"data.module.source.held_back must be above 0 and at most 0.5, got {held_back}")
        if weights is not None and (isinstance(train, str) or len(train) != len(weights)):
            raise InputError(f"data.weights: expected a number per entry of the list data.train, got {list(weights)}")
        if min_size is not None and min_size < 0:
            raise InputError(f"data.min_size: expected at least 0 pixels, got {min_size}")
        if max_aspect is not None and not max_aspect >= 1:
            raise InputError(f"data.max_aspect: expected longer / shorter side, at least 1, got {max_aspect}")
        check_damaged(damaged)
        self.train = train
        self.val = val
        self.weights = weights
        self.min_size = min_size
        self.max_aspect = max_aspect
        self.held_back = held_back
        self.damaged = damaged
        self.cache = cache
        self.name = name

    def prepare(self) -> None:
        """Reads local shards through and holds them against their index, unless damaged ones are skipped anyway."""
        if self.damaged == "stop":
            for key, urls in (("data.train", self.train), ("data.val", self.val)):
                if urls is not None:
                    with _blaming(key):
                        verify_once(urls, self.cache)

    def open(self) -> tuple[ShardSet, ShardSet]:
        with _blaming("data.train"):
            train = open_shards(self.train, damaged=self.damaged, cache=self.cache)
        train = fitting(train, self.min_size, self.max_aspect)
        if self.val is None:
            return split_by_key(train, self.held_back)
        with _blaming("data.val"):
            val = open_shards(self.val, damaged=self.damaged, cache=self.cache)
        if shared := sorted(set(train.table.paths) & set(val.table.paths)):
            _log.warning("%s is in both data.train and data.val: validation will not show overfitting", shared[0])
        return train, val

    def mixture(self, train: ShardSet) -> Mixture | None:
        if self.weights is None:
            return None
        listed = defaultdict(list)
        for path in train.table.paths:
            listed[os.path.dirname(path)].append(os.path.basename(path))
        entries = [expand_urls(entry, listed.get) for entry in self.train]
        entry_of = {path: number for number, paths in enumerate(entries) for path in paths}
        of_shard = np.array([entry_of[path] for path in train.table.paths])
        return Mixture(of_shard[train.shard_of()], self.weights, usable=~train.broken())


class ValidationSource:
    """The shards ``val`` as both sets, for training that streams from elsewhere (``resampled.ResampledShards``)."""

    def __init__(
        self,
        *,
        val: str | Sequence[str],
        damaged: str = "stop",
        cache: ShardCache | None = None,
        name: str = "webdataset",
    ) -> None:
        check_damaged(damaged)
        self.val = val
        self.damaged = damaged
        self.cache = cache
        self.name = name

    def prepare(self) -> None:
        if self.damaged == "stop":
            with _blaming("data.val"):
                verify_once(self.val, self.cache)

    def open(self) -> tuple[ShardSet, ShardSet]:
        with _blaming("data.val"):
            shards = open_shards(self.val, damaged=self.damaged, cache=self.cache)
        return shards, shards

    def mixture(self, train: ShardSet) -> Mixture | None:
        return None


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

    def mixture(self, train: ShardSet) -> Mixture | None:
        return None


@contextmanager
def _blaming(key: str) -> Iterator[None]:
    """An InputError begins with the key that is at fault."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def split_by_key(shards: ShardSet, held_back: float) -> tuple[ShardSet, ShardSet]:
    """(training part, held-back part), each in the order of the set. Raises InputError for fewer than two samples."""
    total = len(shards)
    if total < 2:
        raise InputError(f"{total} sample cannot be split into training and validation; name data.val or add samples")
    count = min(max(round(held_back * total), HELD_BACK_LEAST), HELD_BACK_MOST, total // 2)
    hashes = _key_hashes(shards)
    last = np.partition(hashes, count - 1)[count - 1]
    held = hashes < last
    held[np.flatnonzero(hashes == last)[: count - held.sum()]] = True
    return shards.select(np.flatnonzero(~held)), shards.select(np.flatnonzero(held))


def _key_hashes(shards: ShardSet) -> np.ndarray:
    """uint64 (samples,): of each sample's shard, by the name of its file, and key."""
    table, shard_of = shards.table, shards.shard_of()
    names = [f"{os.path.basename(path).removesuffix('.tar')}/".encode() for path in table.paths]
    letters, hashes = table.keys.data, np.empty(len(shards), dtype=np.uint64)
    for start in range(0, len(shards), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = shards.rows[part]
        spans = (values.tolist() for values in (shard_of[part], table.first_letter[rows], table.first_letter[rows + 1]))
        digests = [hashlib.blake2b(names[n] + letters[i:j], digest_size=8).digest() for n, i, j in zip(*spans)]
        hashes[part] = np.frombuffer(b"".join(digests), dtype=">u8")
    return hashes
