"""Samples by their indices, in ranges that are read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from latentdiff.data.plan import Slot
from latentdiff.data.sample import within_reach
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.stream import BatchLoader, ShardDataset
from latentdiff.types import Batch

_REMOTE_SHARDS = 8
"""Of a remote set that samples are spread over: each has to be fetched whole."""


class RangePlan:
    """Batch k holds the samples of the k-th of some ranges of indices."""

    def __init__(self, num_samples: int, ranges: Sequence[range]):
        self.num_samples, self.ranges = num_samples, ranges

    def slots(self, number: int) -> list[Slot]:
        return [Slot(0, place) for place in self.ranges[number]]

    def index(self, slot: Slot) -> int:
        return slot.place % self.num_samples


class SampleRanges:
    """Random access to the samples of a set; each process reads what it asks for, and nothing else.

    Args:
        dataset: reads the batches of a plan.
        num_workers: processes that read ahead where several ranges are asked for.
    """

    def __init__(
        self, shards: ShardSet, dataset: Callable[[ShardSet, RangePlan], ShardDataset], *, num_workers: int = 0
    ):
        self.shards, self._dataset, self._workers = shards, dataset, num_workers

    def __len__(self) -> int:
        return len(self.shards)

    def __call__(self, indices: range) -> Batch:
        """The samples of a range within ``range(len(self))``."""
        return self._dataset(self.shards, RangePlan(len(self), [indices]))[0]

    def in_order(self, ranges: Sequence[range]) -> Iterator[Batch]:
        """Those of several ranges, one after the other."""
        dataset = self._dataset(self.shards, RangePlan(len(self), ranges))
        workers, pinned = min(self._workers, len(ranges)), torch.cuda.is_available()
        yield from BatchLoader(dataset, range(len(ranges)), num_workers=workers, pin_memory=pinned)


def spread(shards: ShardSet, count: int) -> ShardSet:
    """``count`` usable samples spread over the set, or as many as there are."""
    near = within_reach(shards, remote=_REMOTE_SHARDS)
    usable = near[~shards.broken()[near]]
    return shards.select(usable[np.linspace(0, len(usable) - 1, min(count, len(usable))).astype(np.int64)])
