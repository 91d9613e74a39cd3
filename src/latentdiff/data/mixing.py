"""Several sources in fixed proportions: which samples make up a batch is a pure function of its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.plan import SHUFFLE, EpochOrder, LastEpochs, Slot, draw_int

_SHARES = 10_000
_SOURCE, _PLACES = 1, 2
"""Purposes of draws."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Which source each sample of a set is of, and how often each source is drawn."""

    source_of: np.ndarray
    """int (samples,)."""
    weights: Sequence[float]
    """Per source; they need not sum to 1."""
    usable: np.ndarray | None = None
    """bool (samples,): those not known to be lost; None: all."""

    def __post_init__(self) -> None:
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise InputError(f"data.weights: expected numbers above 0, got {list(self.weights)}")
        counted = self.source_of if self.usable is None else self.source_of[self.usable]
        empty = np.flatnonzero(np.bincount(counted, minlength=len(self.weights)) == 0)
        if len(empty):
            raise InputError(
                f"entry {empty[0] + 1} of the {len(self.weights)} of data.train has no usable samples left; "
                "remove it and its weight"
            )


class MixedPlan:
    """Training order of several sources, whatever their sizes: each has epochs of its own, in fresh orders.

    The stream of samples repeats a cycle of 10,000 in which each source has its share, rounded to whole samples (at
    least one) and spread evenly; so the numbers drawn of a source are exact over a cycle and a few samples off within
    it. The places of a batch are permuted by (seed, batch number), that every rank's part is such a mixture.
    ``shard_of`` and ``window``: see ``EpochOrder``, of each source.
    """

    def __init__(
        self, mixture: Mixture, global_batch: int, seed: int, *, shard_of: np.ndarray, window: int = SHUFFLE
    ) -> None:
        self.global_batch = global_batch
        self.seed = seed
        self.batches_per_epoch = max(1, len(mixture.source_of) // global_batch)
        """Of as many samples as the sources have together."""
        self._members = [np.flatnonzero(mixture.source_of == s).astype(np.int32) for s in range(len(mixture.weights))]
        self._orders = [
            LastEpochs(EpochOrder(len(m), draw_int(seed, s, _SOURCE), shard_of=shard_of[m], window=window))
            for s, m in enumerate(self._members)
        ]
        total = sum(mixture.weights)
        self._quota = np.array([max(1, round(_SHARES * weight / total)) for weight in mixture.weights])
        spread = np.argsort(np.concatenate([(np.arange(q) + 0.5) / q for q in self._quota]), kind="stable")
        self._source = np.repeat(np.arange(len(self._quota)), self._quota)[spread]
        self._nth = np.concatenate([np.arange(q) for q in self._quota])[spread]
        """Of each place of the cycle: its source, and how many of that source come before it."""

    def slots(self, number: int) -> list[Slot]:
        cycle, at = np.divmod(number * self.global_batch + np.arange(self.global_batch), len(self._source))
        source = self._source[at]
        nth = cycle * self._quota[source] + self._nth[at]
        shuffled = np.random.default_rng(draw_int(self.seed, number, _PLACES)).permutation(self.global_batch)
        return [
            Slot(*divmod(n, len(self._members[s])), s)
            for s, n in zip(source[shuffled].tolist(), nth[shuffled].tolist())
        ]

    def index(self, slot: Slot) -> int:
        members = self._members[slot.part]
        return int(members[self._orders[slot.part][slot.epoch][slot.place % len(members)]])
