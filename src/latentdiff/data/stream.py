"""Batches out of shards: batch number in, one rank's part of that global batch out.

A batch is a pure function of the plan, the seed and its number. Therefore the loader's state is the number of batches
seen, ranks and workers change nothing, and workers reading ahead cost nothing at a resume.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.labels import Labels
from latentdiff.data.plan import Plan, Slot, rank_slice
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.worker import group_signals_blocked, outlive_signals
from latentdiff.types import Batch

_log = logging.getLogger(__name__)
_SEEN, _BROKEN = 1, 2


@dataclass(frozen=True)
class ReadCounts:
    """Samples tried so far, and those known to be broken from the start: after a whole epoch ``seen + skipped ==
    indexed``."""

    seen: int
    skipped: int
    indexed: int

    @classmethod
    def of(cls, status: Tensor) -> ReadCounts:
        """Those in ``ShardDataset.status``."""
        return cls(int((status == _SEEN).sum()), int((status == _BROKEN).sum()), len(status))


class Reader(Protocol):
    """Makes what a batch holds of one sample, and a batch's fields of several."""

    def read(self, epoch: int, index: int) -> Any:
        """Sample ``index`` as ``epoch`` draws it. Raises BrokenSampleError where it cannot be used."""

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        """What ``read`` gave -> fields of ``Batch`` by their names."""


class Readers(Protocol):
    """Makes the readers of sets of samples."""

    def check(self, shards: ShardSet) -> None:
        """InputError where the set cannot be read so."""

    def __call__(
        self, shards: ShardSet, *, draw: bool, seed: int, flip: bool, labels: Labels, require_captions: bool
    ) -> Reader:
        """With ``draw`` (training) every epoch is read as it draws, without it the samples are always the same.

        The others are those of ``ImageReader`` and ``CoverCrop``.
        """


LEAST_TRIED = 1000
"""Of fewer samples than these, the broken ones say little about their share."""


def check_share(max_broken: float) -> float:
    """Raises InputError unless it is a share."""
    if not 0 <= max_broken <= 1:
        raise InputError(f"data.module.max_broken: expected a share from 0 to 1, got {max_broken}")
    return max_broken


def too_many(broken: float, tried: int, max_broken: float) -> bool:
    """Whether ``broken`` samples are more than the share ``max_broken`` of ``tried``; one is always borne."""
    return broken > max(1, max_broken * tried)


class ShardDataset(Dataset):
    """Maps a batch number to this rank's part of that global batch, its samples made by ``reader``.

    A sample that cannot be used is replaced by the next of the plan, of its source or bucket where the plan has these,
    with a warning that names it; one that the set knows to be broken, without. More than the share ``max_broken`` is
    an InputError: of the set, of those known before; then, these included, of what this rank tries in an epoch, or has
    tried if that is more. At least one is borne, and a part of less than 1000 samples counts as 1000 of the set.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        plan: Plan,
        reader: Reader,
        rank: int = 0,
        ranks: int = 1,
        max_broken: float = 0.01,
    ) -> None:
        self.shards = shards
        self.plan = plan
        self.reader = reader
        self.rank = rank
        self.ranks = ranks
        self.max_broken = max_broken
        self.status = torch.zeros(len(shards), dtype=torch.uint8).share_memory_()
        """uint8 (samples,): untried, seen or broken; shared with the worker processes."""
        self.status[torch.from_numpy(shards.broken())] = _BROKEN
        self._known = self.counts.skipped
        self._last = "the warnings above say why"
        if too_many(self._known, len(shards), max_broken):
            raise self._stopped(self._known, len(shards))

    @property
    def counts(self) -> ReadCounts:
        return ReadCounts.of(self.status)

    def __getitem__(self, number: int) -> Batch:
        slots = self.plan.slots(number)
        part = rank_slice(len(slots), self.rank, self.ranks)
        found = [self._readable(slot) for slot in slots[part]]
        return Batch(
            keys=[self.shards.key(index) for index, _ in found],
            number=number,
            start=part.start,
            total=len(slots),
            **self.reader.collate([row for _, row in found]),
        )

    def _readable(self, slot: Slot) -> tuple[int, Any]:
        """The slot's sample, or the next usable one after it in the plan: its index, and what the reader made."""
        for step in range(len(self.shards)):
            index = self.plan.index(replace(slot, place=slot.place + step))
            if self.status[index] != _BROKEN:
                try:
                    row = self.reader.read(slot.epoch, index)
                except BrokenSampleError as error:
                    self._report(index, error)
                else:
                    self.status[index] = _SEEN
                    return index, row
        raise InputError(f"no sample of the data, of this bucket or entry of data.train can be read; {self._last}")

    def _report(self, index: int, error: BrokenSampleError) -> None:
        self.status[index] = _BROKEN
        self._last = f"the last was {self.shards.where(index)}: {error}"
        _log.warning("skipped sample %s: %s", self.shards.where(index), error)
        counts, indexed = self.counts, len(self.shards)
        found = counts.skipped - self._known
        tried = max(counts.seen + found, -(-indexed // self.ranks), min(indexed, LEAST_TRIED))
        known = self._known * tried / indexed
        if too_many(found + known, tried, self.max_broken):
            raise self._stopped(round(found + known), tried)

    def _stopped(self, broken: int, tried: int) -> InputError:
        whose = "" if tried == len(self.shards) else f" of rank {self.rank}"
        return InputError(
            f"{broken} of {tried} samples{whose} are broken, more than data.module.max_broken={self.max_broken} "
            f"allows; {self._last}"
        )


class BatchLoader:
    """The batches of the given numbers in order, prepared ahead by worker processes.

    Not a ``DataLoader`` itself, so that Lightning adds no sampler of its own; an InputError found by a worker is
    raised here as it is, without the worker's traceback.
    """

    def __init__(self, dataset: Dataset, numbers: range, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.dataset = dataset
        self._numbers = numbers
        self._loader = DataLoader(
            _Delivering(dataset),
            batch_size=None,
            sampler=numbers,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=outlive_signals,
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        with group_signals_blocked():
            prepared = iter(self._loader)
        for remaining in reversed(range(len(self))):
            item = next(prepared)
            if remaining == 0:
                del prepared  # ends the workers now: Lightning never asks beyond the length
            if isinstance(item, InputError):
                raise item
            yield item


class _Delivering(Dataset):
    """Delivers an InputError in the place of a batch."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> Batch | InputError:
        try:
            return self.dataset[number]
        except InputError as error:
            return error
