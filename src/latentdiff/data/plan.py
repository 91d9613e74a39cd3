"""Which samples make up which batch: pure functions of (seed, epoch), whatever the number of ranks and workers."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

T = TypeVar("T")
SHUFFLE = 65_536
"""Usual window of ``EpochOrder``: 65 shards of 1000 samples are read at a time."""
_SHARDS = 1
"""Purpose of a draw beside that of an epoch's samples."""


@dataclass(frozen=True)
class Slot:
    """A place in the order of an epoch, in one of the ``part``s (sources, or buckets) that a plan may have."""

    epoch: int
    place: int
    part: int = 0


class Plan(Protocol):
    """The order of samples, cut into global batches."""

    def slots(self, number: int) -> list[Slot]:
        """The slots of global batch ``number``."""

    def index(self, slot: Slot) -> int:
        """The sample in a slot; places beyond the end of its part go on at the start."""


class EpochOrder:
    """The order of ``num_samples`` samples in each epoch: a pure function of (seed, epoch).

    The shards in random order, the samples of each in random order, then shuffled within a window: no sample moves by
    ``window`` places or more, so that about window / samples-per-shard shards are read at a time. A window of at least
    the number of samples gives any permutation equally likely. ``shard_of``: int (num_samples,), the shard of each
    sample; None stands for one shard.
    """

    def __init__(
        self, num_samples: int, seed: int, *, shard_of: np.ndarray | None = None, window: int = SHUFFLE
    ) -> None:
        if num_samples < 1 or window < 1:
            raise ValueError(f"expected samples and a window of at least 1, got {num_samples} and {window}")
        self.num_samples = num_samples
        self.seed = seed
        self.window = window
        self._shard_of = np.zeros(num_samples, dtype=np.int32) if shard_of is None else shard_of

    def __call__(self, epoch: int) -> np.ndarray:
        """int32 (num_samples,): the samples in the epoch's order."""
        generator = torch.Generator().manual_seed(draw_int(self.seed, epoch))
        if self.window >= self.num_samples:
            return torch.randperm(self.num_samples, generator=generator).numpy().astype(np.int32)
        rng = np.random.default_rng(draw_int(self.seed, epoch, _SHARDS))
        place = rng.permutation(int(self._shard_of.max()) + 1)[self._shard_of] + rng.random(self.num_samples)
        by_shard = np.argsort(place, kind="stable").astype(np.int32)
        place = np.arange(self.num_samples) + self.window * rng.random(self.num_samples)
        return by_shard[np.argsort(place, kind="stable")]


class LastEpochs(Generic[T]):
    """Remembers what ``draw`` made of the last two epochs: a batch may run from one into the next."""

    def __init__(self, draw: Callable[[int], T]) -> None:
        self._draw = draw
        self._kept: dict[int, T] = {}

    def __getitem__(self, epoch: int) -> T:
        if epoch not in self._kept:
            if len(self._kept) > 1:
                del self._kept[max(self._kept, key=lambda kept: abs(kept - epoch))]
            self._kept[epoch] = self._draw(epoch)
        return self._kept[epoch]


class BatchPlan:
    """Training order: each epoch in a fresh order, batches numbered on through all epochs.

    The incomplete batch at an epoch's end is left out. With fewer samples than ``global_batch`` the batches run on
    from one epoch's order into the next, so that nothing is left out. ``shard_of`` and ``window``: see ``EpochOrder``.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch: int,
        seed: int,
        *,
        shard_of: np.ndarray | None = None,
        window: int = SHUFFLE,
    ) -> None:
        if num_samples < 1 or global_batch < 1:
            raise ValueError(f"expected samples and a batch of at least 1, got {num_samples} and {global_batch}")
        self.num_samples = num_samples
        self.global_batch = global_batch
        self._order = LastEpochs(EpochOrder(num_samples, seed, shard_of=shard_of, window=window))

    @property
    def batches_per_epoch(self) -> int:
        """Complete batches in an epoch, at least 1."""
        return max(1, self.num_samples // self.global_batch)

    def slots(self, number: int) -> list[Slot]:
        if self.num_samples < self.global_batch:
            start = number * self.global_batch
            return [Slot(*divmod(start + i, self.num_samples)) for i in range(self.global_batch)]
        epoch, batch = divmod(number, self.batches_per_epoch)
        return [Slot(epoch, batch * self.global_batch + i) for i in range(self.global_batch)]

    def index(self, slot: Slot) -> int:
        return int(self._order[slot.epoch][slot.place % self.num_samples])

    def indices(self, number: int) -> list[int]:
        """The samples of global batch ``number`` since training began."""
        return [self.index(slot) for slot in self.slots(number)]


class SequentialPlan:
    """Evaluation order: every sample once, in the order of the set, the last batch shorter.

    A last batch of fewer than ``ranks`` samples is joined to the one before, so that no rank is left without a part.
    """

    def __init__(self, num_samples: int, global_batch: int, ranks: int = 1) -> None:
        if num_samples < ranks:
            raise ValueError(f"{num_samples} samples cannot be shared among {ranks} ranks")
        self.num_samples = num_samples
        self.global_batch = global_batch
        full, rest = divmod(num_samples, global_batch)
        self.num_batches = max(1, full + (rest >= ranks and rest > 0))

    def slots(self, number: int) -> list[Slot]:
        start = number * self.global_batch
        stop = self.num_samples if number == self.num_batches - 1 else start + self.global_batch
        return [Slot(0, place) for place in range(start, stop)]

    def index(self, slot: Slot) -> int:
        return slot.place % self.num_samples


def rank_slice(total: int, rank: int, ranks: int) -> slice:
    """Rank's consecutive part of ``total`` samples; parts differ by at most one sample, longer ones first."""
    size, extra = divmod(total, ranks)
    start = rank * size + min(rank, extra)
    return slice(start, start + size + (rank < extra))


def draw_int(*key: int) -> int:
    """A uniform 63-bit integer that depends on the key alone, the same on every machine."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def draw_uniform(*key: int) -> float:
    """A uniform number in [0, 1) that depends on the key alone."""
    return (draw_int(*key) >> 10) / (1 << 53)
