"""Which samples make up which batch: pure functions of (seed, epoch), whatever the number of ranks and workers."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Slot:
    """A place in the order of an epoch."""

    epoch: int
    place: int


class Plan(Protocol):
    """The order of samples, cut into global batches."""

    def slots(self, number: int) -> list[Slot]:
        """The slots of global batch ``number``."""

    def index(self, slot: Slot) -> int:
        """The sample in a slot; places beyond the epoch's end go on at its start."""


class BatchPlan:
    """Training order: each epoch a fresh permutation, batches numbered on through all epochs.

    The incomplete batch at an epoch's end is left out. With fewer samples than ``global_batch`` the batches run on
    from one epoch's permutation into the next, so that nothing is left out.
    """

    def __init__(self, num_samples: int, global_batch: int, seed: int) -> None:
        if num_samples < 1 or global_batch < 1:
            raise ValueError(f"expected samples and a batch of at least 1, got {num_samples} and {global_batch}")
        self.num_samples = num_samples
        self.global_batch = global_batch
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

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
        if slot.epoch != self._epoch:
            generator = torch.Generator().manual_seed(draw_int(self.seed, slot.epoch))
            self._order, self._epoch = torch.randperm(self.num_samples, generator=generator), slot.epoch
        return int(self._order[slot.place % self.num_samples])

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
