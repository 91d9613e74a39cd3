"""Shards drawn with replacement, for those without an index and for more of them than an index can hold."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.fetching import Fetcher, RefusedError
from latentdiff.data.image_reader import ImageReader
from latentdiff.data.plan import draw_int
from latentdiff.data.shard_files import ShardFiles, open_local
from latentdiff.data.shard_names import expand_urls, is_remote
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shard_table import placed, table_of
from latentdiff.data.stream import LEAST_TRIED, too_many
from latentdiff.data.tar_scan import scan_tar
from latentdiff.types import Batch

_log = logging.getLogger(__name__)
_DAMAGED_IN_A_ROW = 10


class ResampledShards:
    """Training samples out of ``train`` (see ``shard_names.expand_urls``), statistically: no epochs and no index.

    Every worker of every rank draws shards with replacement and mixes the samples of ``pool`` of them at a time. Its
    draws depend on the seed, the batch that the run or its resumption starts with, the rank and the worker: other
    numbers of these give other samples, and a resumed run goes on with fresh ones.

    Each shard's tar headers are checked when it is opened; a remote one is fetched whole for that, to a temporary file.
    ``damaged`` "skip" draws another in place of a damaged one, with a warning; "stop" raises InputError.
    """

    def __init__(self, *, train: str | Sequence[str], pool: int = 16, damaged: str = "stop") -> None:
        if pool < 1 or damaged not in ("stop", "skip"):
            raise InputError(f"data: expected pool of at least 1 and damaged stop or skip, got {pool=}, {damaged=}")
        self.train = train
        self.pool = pool
        self.tolerant = damaged == "skip"

    def paths(self) -> list[str]:
        """Files and URLs. Raises InputError for those that are not there."""
        try:
            return expand_urls(self.train)
        except InputError as error:
            raise InputError(f"data.train: {error}") from error

    def open(self, path: str) -> ShardSet:
        """One shard. Raises InputError where it is damaged or cannot be fetched."""
        if not is_remote(path):
            return self._opened(path, path)
        with tempfile.TemporaryDirectory() as folder:
            fetched = os.path.join(folder, "shard.tar")
            try:
                Fetcher(retries=5, first_wait=1.0).fetch(path, fetched)
            except RefusedError as error:
                raise InputError(f"{path} {error}") from error
            return self._opened(path, fetched)

    def _opened(self, path: str, local: str) -> ShardSet:
        try:
            table = table_of(path, scan_tar(local), digest=lambda: os.path.basename(path))
            descriptor = open_local(local)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
        files = ShardFiles([path], tolerant=self.tolerant, open_shard=lambda _: descriptor)
        return ShardSet(placed(table, [path]), files)


class ResampledDataset(Dataset):
    """Maps any batch number to this rank's next samples, as many on every rank, without end.

    A sample that cannot be used is left out with a warning. More than ``max_broken`` of those that a worker has tried,
    or of 1000 if it has tried fewer, is an InputError.
    """

    def __init__(
        self,
        shards: ResampledShards,
        *,
        reader: ImageReader,
        global_batch: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
        max_broken: float = 0.01,
    ) -> None:
        self.shards = shards
        self.paths = shards.paths()
        self.reader = reader
        self.batch = global_batch // ranks
        self.key = (seed, start, rank)
        self.rank = rank
        self.ranks = ranks
        self.max_broken = max_broken
        self._rows: Iterator[tuple[str, Any]] | None = None
        """This process's stream; made where it is read, in a worker."""
        if rank == 0:
            _log.warning(
                "shards are drawn with replacement: there are no epochs, and a resumed run or one on other numbers of "
                "processes or workers sees other samples"
            )

    def __getitem__(self, number: int) -> Batch:
        if self._rows is None:
            worker = get_worker_info()
            self._rows = self._readable(draw_int(*self.key, 0 if worker is None else worker.id))
        found = list(islice(self._rows, self.batch))
        return Batch(
            keys=[key for key, _ in found],
            number=number,
            start=self.rank * self.batch,
            total=self.ranks * self.batch,
            **self.reader.collate([row for _, row in found]),
        )

    def _readable(self, seed: int) -> Iterator[tuple[str, Any]]:
        broken = 0
        for tried, (shards, index) in enumerate(self._mixed(np.random.default_rng(seed)), start=1):
            try:
                row = self.reader.over(shards, seed).read(tried, index)
            except BrokenSampleError as error:
                _log.warning("skipped sample %s: %s", shards.where(index), error)
                broken += 1
                if too_many(broken, max(tried, LEAST_TRIED), self.max_broken):
                    raise InputError(
                        f"{broken} of {tried} samples are broken, more than data.module.max_broken={self.max_broken} "
                        f"allows; the last was {shards.where(index)}: {error}"
                    ) from error
            else:
                yield shards.key(index), row

    def _mixed(self, rng: np.random.Generator) -> Iterator[tuple[ShardSet, int]]:
        pool = [self._shuffled(rng) for _ in range(self.shards.pool)]
        while True:
            place = int(rng.integers(len(pool)))
            drawn = next(pool[place], None)
            if drawn is None:
                pool[place] = self._shuffled(rng)
            else:
                yield drawn

    def _shuffled(self, rng: np.random.Generator) -> Iterator[tuple[ShardSet, int]]:
        shards = self._drawn(rng)
        for index in rng.permutation(len(shards)).tolist():
            yield shards, index

    def _drawn(self, rng: np.random.Generator) -> ShardSet:
        for _ in range(_DAMAGED_IN_A_ROW):
            path = self.paths[int(rng.integers(len(self.paths)))]
            try:
                return self.shards.open(path)
            except InputError as error:
                if not self.shards.tolerant:
                    raise
                _log.warning("skipped a shard: %s", error)
        raise InputError(f"data.train: {_DAMAGED_IN_A_ROW} shards drawn in a row are damaged; mend or remove them")
