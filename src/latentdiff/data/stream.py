"""Batches out of shards: batch number in, one rank's part of that global batch out.

A batch is a pure function of the plan, the seed and its number. Therefore the loader's state is the number of batches
seen, ranks and workers change nothing, and workers reading ahead cost nothing at a resume.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import Condition, Frame
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.labels import Labels
from latentdiff.data.plan import Plan, Slot, draw_int, draw_uniform, rank_slice
from latentdiff.data.sample import Sample, read_sample
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.transforms import SquareCrop
from latentdiff.data.worker import group_signals_blocked, outlive_signals
from latentdiff.diffusion.noise import stable_hash
from latentdiff.types import Batch

_log = logging.getLogger(__name__)
_SEEN, _BROKEN = 1, 2
_CROP, _FLIP, _CAPTION = 1, 2, 3
"""Purposes of a sample's draws."""
_FIXED = (0, -1)
"""Seed and epoch of a condition's draws in evaluation, where they depend on the sample's index and the field alone."""


@dataclass(frozen=True)
class ReadCounts:
    """Samples this rank has tried so far: after a whole epoch on one rank, ``seen + skipped == indexed``."""

    seen: int
    skipped: int
    indexed: int


@dataclass(frozen=True)
class _Row:
    """One sample, ready for a batch."""

    index: int
    sample: Sample
    image: Tensor
    made: dict[str, Tensor]
    """Field of the batch -> what its condition made."""


class ShardDataset(Dataset):
    """Maps a batch number to this rank's part of that global batch.

    A sample that cannot be decoded is replaced by the next of the plan, with a warning that names it; more than
    ``max_broken`` of all samples (though at least one is borne) is an InputError. With ``draw`` off the main caption is
    taken and the crop is the centre one; with it on, caption, crop and mirroring depend on (seed, epoch, sample).

    ``conditions`` make further fields of the batch, by its name. Each sample and field has a generator of its own,
    seeded by (seed, epoch, sample, field), with ``draw`` off by (sample, field): the same in every run.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        plan: Plan,
        transform: SquareCrop,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        draw: bool = True,
        with_attributes: bool = False,
        require_captions: bool = False,
        labels: Labels | None = None,
        conditions: Mapping[str, Condition] | None = None,
        max_pixels: int = 64_000_000,
        max_broken: float = 0.01,
    ) -> None:
        self.shards = shards
        self.plan = plan
        self.transform = transform
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.draw = draw
        self.with_attributes = with_attributes
        self.require_captions = require_captions
        self.labels = Labels() if labels is None else labels
        self.conditions = dict(conditions or {})
        self.max_pixels = max_pixels
        self.broken_allowed = max(1, int(max_broken * len(shards)))
        self.status = torch.zeros(len(shards), dtype=torch.uint8).share_memory_()
        """Per sample untried, seen or broken; shared with the worker processes."""

    @property
    def counts(self) -> ReadCounts:
        seen, broken = (int((self.status == state).sum()) for state in (_SEEN, _BROKEN))
        return ReadCounts(seen, broken, len(self.shards))

    def __getitem__(self, number: int) -> Batch:
        slots = self.plan.slots(number)
        part = rank_slice(len(slots), self.rank, self.ranks)
        size = self.transform.size
        images = torch.empty((part.stop - part.start, 3, size, size), dtype=torch.uint8)
        keys, captions, labels, attributes = [], [], [], []
        made: dict[str, list[Tensor]] = {name: [] for name in self.conditions}
        for place, slot in enumerate(slots[part]):
            row = self._readable(slot)
            images[place] = row.image
            keys.append(self.shards.key(row.index))
            captions.append(self._caption(row.sample, slot.epoch, row.index))
            labels.append(row.sample.label)
            attributes.append(row.sample.attributes)
            for name, value in row.made.items():
                made[name].append(value)
        return Batch(
            keys=keys,
            image=images,
            caption=captions,
            label=torch.tensor(labels, dtype=torch.int64),
            attributes=attributes if self.with_attributes else None,
            number=number,
            start=part.start,
            total=len(slots),
            **{name: torch.stack(values) for name, values in made.items()},
        )

    def _readable(self, slot: Slot) -> _Row:
        """The slot's sample, or the next readable one after it in the plan."""
        for step in range(len(self.shards)):
            index = self.plan.index(Slot(slot.epoch, slot.place + step))
            if self.status[index] != _BROKEN:
                try:
                    row = self._row(slot.epoch, index)
                except BrokenSampleError as error:
                    self._report(index, error)
                else:
                    self.status[index] = _SEEN
                    return row
        raise InputError("no sample of the data can be read")

    def _row(self, epoch: int, index: int) -> _Row:
        sample = read_sample(self.shards, index, self.max_pixels, self.labels)
        frame = self._frame(sample, epoch, index)
        image = self.transform.cut(sample.pixels, frame)
        key = (self.seed, epoch) if self.draw else _FIXED
        made = {}
        for name, condition in self.conditions.items():
            rng = np.random.default_rng(stable_hash(*key, index, name))
            made[name] = condition(sample, frame, image, rng)
        return _Row(index, sample, image, made)

    def _report(self, index: int, error: BrokenSampleError) -> None:
        self.status[index] = _BROKEN
        _log.warning("skipped sample %s: %s", self.shards.where(index), error)
        broken = self.counts.skipped
        if broken > self.broken_allowed:
            raise InputError(
                f"{broken} of {len(self.shards)} samples are broken, more than data.module.max_broken allows "
                f"({self.broken_allowed}); the last was {self.shards.where(index)}: {error}"
            )

    def _frame(self, sample: Sample, epoch: int, index: int) -> Frame:
        where, side = 0.5, 1.0
        if self.draw:
            where, side = (draw_uniform(self.seed, epoch, index, purpose) for purpose in (_CROP, _FLIP))
        return self.transform.frame(*sample.pixels.shape[:2], where, side)

    def _caption(self, sample: Sample, epoch: int, index: int) -> str:
        if not sample.captions:
            if self.require_captions:
                raise InputError(
                    f"sample {self.shards.where(index)} has no caption; add it, or set "
                    "data.module.require_captions=false where the model is not conditioned on captions"
                )
            return ""
        choice = draw_int(self.seed, epoch, index, _CAPTION) % len(sample.captions) if self.draw else 0
        return sample.captions[choice]


class BatchLoader:
    """The batches of the given numbers in order, prepared ahead by worker processes.

    Not a ``DataLoader`` itself, so that Lightning adds no sampler of its own; an InputError found by a worker is
    raised here as it is, without the worker's traceback.
    """

    def __init__(
        self, dataset: ShardDataset, numbers: range, *, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
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

    def __init__(self, dataset: ShardDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> Batch | InputError:
        try:
            return self.dataset[number]
        except InputError as error:
            return error
