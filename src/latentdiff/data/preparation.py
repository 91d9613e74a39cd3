"""Shards read through once per machine before training, with a progress bar where it takes long."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from latentdiff.data.remote import ShardCache
from latentdiff.data.shards import verify_shards
from latentdiff.data.verified import Verified

MOST_VERIFIED = 20 << 30
"""Bytes of a set up to which it is read through before training."""
_PATIENCE = 2.0
"""Seconds without a bar."""


def verify_once(urls: str | Sequence[str], cache: ShardCache | None = None) -> None:
    """``verify_shards`` for sets of at most 20 GiB; what was found whole before and is unchanged is not read again.

    Of several processes one reads, the others wait and find it remembered.
    """
    columns = (TextColumn("verifying the shards"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar, start = Progress(*columns, transient=True), time.monotonic()
    task = bar.add_task("")

    def show(done: int, total: int) -> None:
        if time.monotonic() - start > _PATIENCE:
            bar.start()
            bar.update(task, completed=done, total=total)

    with Verified.alone() as verified:
        try:
            verify_shards(urls, cache=cache, verified=verified, most_bytes=MOST_VERIFIED, progress=show)
        finally:
            if bar.live.is_started:
                bar.stop()
