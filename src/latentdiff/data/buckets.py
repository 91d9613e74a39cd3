"""Aspect-ratio buckets: images keep about their shape, a batch has one shape (SDXL, arXiv:2307.01952, section 2.3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.plan import SHUFFLE, EpochOrder, LastEpochs, Slot
from latentdiff.data.transforms import CoverCrop

_log = logging.getLogger(__name__)

Sizes = Sequence[tuple[int, int]]
"""(height, width) of each bucket."""


class AspectBuckets:
    """``sizes`` (height, width) of about ``area`` pixels, in multiples of ``multiple``, no side longer than
    ``max_aspect`` times the other: for each side the longest other one that ``area`` allows, upright and lying.

    Raises InputError where ``area`` is less than one square of ``multiple``, or ``max_aspect`` less than 1.
    """

    def __init__(self, *, area: int, multiple: int = 64, max_aspect: float = 2.0) -> None:
        if multiple < 1 or area < multiple**2 or max_aspect < 1:
            raise InputError(
                f"data.buckets: expected area of at least multiple x multiple and max_aspect of at least 1, got {area=}"
                f", {multiple=}, {max_aspect=}"
            )
        found: dict[float, tuple[int, int]] = {}
        for side in range(multiple, area // multiple + 1, multiple):
            other = area // side // multiple * multiple
            for height, width in ((side, other), (other, side)):
                kept = found.get(height / width, (0, 0))
                if max(height, width) <= max_aspect * min(height, width) and kept[0] < height:
                    found[height / width] = (height, width)
        self.sizes = sorted(found.values())


def checked_sizes(buckets: Sequence[Sequence[int]] | AspectBuckets) -> list[tuple[int, int]]:
    """(height, width) of each. Raises InputError unless they are positive and of different aspect ratios."""
    pairs = [tuple(size) for size in (buckets.sizes if isinstance(buckets, AspectBuckets) else buckets)]
    if not pairs or not all(len(p) == 2 and all(isinstance(n, int) and n > 0 for n in p) for p in pairs):
        raise InputError(f"data.buckets: expected a list of [height, width] in pixels, got {[list(p) for p in pairs]}")
    if len({height / width for height, width in pairs}) < len(pairs):
        raise InputError(f"data.buckets: two of {[list(p) for p in pairs]} have one aspect ratio; keep one of them")
    return pairs


def assign(images: np.ndarray, sizes: Sizes, least: int, usable: np.ndarray | None = None) -> np.ndarray:
    """uint16 (samples,): the bucket of each image (height, width; int (samples, 2)), that of the nearest aspect ratio.

    A bucket of fewer than ``least`` images would never fill a batch. Such buckets are closed, the emptiest first, and
    their images go to the nearest of the others. Images of unknown size (0) count as squares. Of ``usable``, bool
    (samples,), only the true ones count; None: all. Raises InputError where fewer than ``least`` count in all.
    """
    usable = np.ones(len(images), dtype=bool) if usable is None else usable
    if usable.sum() < least:
        raise InputError(f"data.buckets: {usable.sum()} usable samples are fewer than one batch; lower global_batch")
    known = (images > 0).all(axis=1)
    aspect = np.where(known, np.log(np.maximum(images[:, 0], 1) / np.maximum(images[:, 1], 1)), 0.0)
    kept = np.argsort([height / width for height, width in sizes])
    while True:
        centres = np.log([sizes[bucket][0] / sizes[bucket][1] for bucket in kept])
        bucket_of = kept[np.searchsorted((centres[1:] + centres[:-1]) / 2, aspect)].astype(np.uint16)
        counts = np.bincount(bucket_of[usable], minlength=len(sizes))
        emptiest = kept[np.argmin(counts[kept])]
        if counts[emptiest] >= least:
            return bucket_of
        if counts[emptiest]:
            size, count = "{}x{}".format(*sizes[emptiest]), counts[emptiest]
            _log.warning("bucket %s has %d usable samples, fewer than a batch: others take them", size, count)
        kept = kept[kept != emptiest]


class BucketPlan:
    """Training order in which each global batch is of one bucket.

    Each epoch has a fresh order. Walked from its start, a batch is complete when its bucket has ``global_batch``
    samples; batches come in the order of their completion. What is left over in each bucket at the epoch's end,
    ``left_out`` samples together, is dropped, so that every epoch has as many batches. ``bucket_of``: int (samples,),
    of which each has at least ``global_batch`` or none; for ``shard_of`` and ``window`` see ``EpochOrder``.
    """

    def __init__(
        self, bucket_of: np.ndarray, global_batch: int, seed: int, *, shard_of: np.ndarray, window: int = SHUFFLE
    ) -> None:
        self.global_batch = global_batch
        self._bucket_of = bucket_of
        self._counts = np.bincount(bucket_of)
        self._starts = np.cumsum(self._counts) - self._counts
        self._order = EpochOrder(len(bucket_of), seed, shard_of=shard_of, window=window)
        self._epochs = LastEpochs(self._laid_out)
        self.batches_per_epoch = int((self._counts // global_batch).sum())
        self.left_out = len(bucket_of) - self.batches_per_epoch * global_batch

    def slots(self, number: int) -> list[Slot]:
        epoch, batch = divmod(number, self.batches_per_epoch)
        bucket, place = self._epochs[epoch][1][batch].tolist()
        return [Slot(epoch, place + i, bucket) for i in range(self.global_batch)]

    def index(self, slot: Slot) -> int:
        place = self._starts[slot.part] + slot.place % self._counts[slot.part]
        return int(self._epochs[slot.epoch][0][place])

    def _laid_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's samples bucket by bucket, in order, int32 (samples,); each batch's bucket and first place in it,
        int64 (batches, 2)."""
        order = self._order(epoch)
        places = np.argsort(self._bucket_of[order], kind="stable")
        per_bucket = self._counts // self.global_batch
        bucket = np.repeat(np.arange(len(per_bucket)), per_bucket)
        first = np.concatenate([np.arange(count) for count in per_bucket]) * self.global_batch
        completed = places[self._starts[bucket] + first + self.global_batch - 1]
        return order[places], np.stack([bucket, first], axis=1)[np.argsort(completed)]


class BucketCrops:
    """How each sample is cut: to the size of its bucket."""

    def __init__(self, crops: Sequence[CoverCrop], bucket_of: np.ndarray) -> None:
        self.crops = list(crops)
        self.bucket_of = bucket_of

    def of(self, index: int) -> CoverCrop:
        return self.crops[self.bucket_of[index]]
