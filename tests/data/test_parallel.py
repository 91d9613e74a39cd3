"""One function over many items in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from latentdiff.data.parallel import mapped


def _double_or_die(item: int) -> int:
    if item == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


@pytest.mark.parametrize(("processes", "chunk"), [(1, 1), (3, 1), (3, 8)])
def test_results_come_in_order(processes, chunk):
    assert list(mapped(_double_or_die, range(13), processes, chunk=chunk)) == list(range(0, 26, 2))


def test_a_killed_process_is_told():
    with pytest.raises(ChildProcessError, match="was killed"):
        list(mapped(_double_or_die, range(100), 2))


def test_items_are_taken_as_they_are_needed():
    taken = []
    results = mapped(_double_or_die, (taken.append(item) or item for item in range(13)), 2)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    results.close()
    assert multiprocessing.active_children() == []
