"""A sampling that is watched from another thread: how far it is, what it looks like, and an end to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from torch import Tensor

EVERY = 0.4
"""Seconds from one report to the next."""
SHARE = 0.2
"""Of the time, at most, that is spent on reports."""

Told = TypeVar("Told")
_END = object()


class StoppedError(Exception):
    """The work was stopped from outside."""


@dataclass(frozen=True)
class Progress:
    """``step`` of ``total`` are made; ``images`` uint8 (N, 3, H, W), as they would be from here on without noise."""

    step: int
    total: int
    images: Tensor


class Visitor:
    """Who asked for it, and may want no more of it."""

    stopped = False


class Watch:
    """An ``on_step`` that reports now and then, and ends the sampling when its visitor has stopped it.

    Args:
        total: steps in all.
        show: x0_hat (N, C, h, w) -> images.
        report: is called at most every ``EVERY`` seconds, and so rarely that ``show`` takes no more than ``SHARE``.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        total: int,
        show: Callable[[Tensor], Tensor],
        report: Callable[[Progress], None],
        visitor: Visitor,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.show, self.report, self.visitor, self.clock = total, show, report, visitor, clock
        self._next = clock() + EVERY

    def __call__(self, step: int, t_next: Tensor, x: Tensor, x0_hat: Tensor) -> None:
        """Raises StoppedError."""
        if self.visitor.stopped:
            raise StoppedError
        began = self.clock()
        if began >= self._next:
            self.report(Progress(step + 1, self.total, self.show(x0_hat)))
            ended = self.clock()
            self._next = ended + max(EVERY, (ended - began) * (1 / SHARE - 1))


def followed(
    pool: ThreadPoolExecutor, work: Callable[[Callable[[Told], None]], Told], visitor: Visitor
) -> Iterator[Told | None]:
    """What ``work`` tells while it runs in ``pool``, None where it tells nothing for ``EVERY`` seconds, and at last
    what it returns.

    Raises its error, and StoppedError where the visitor stops it before it begins.
    """
    told: SimpleQueue = SimpleQueue()
    future = pool.submit(work, told.put)
    future.add_done_callback(lambda _: told.put(_END))
    one = None
    while one is not _END:
        try:
            one = told.get(timeout=EVERY)
        except Empty:
            one = None
        if visitor.stopped and future.cancel():
            raise StoppedError
        if one is not _END:
            yield one
    yield future.result()
