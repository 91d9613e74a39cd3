"""One function over many items in several processes, results in order, memory bounded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

_WAITING_PER_PROCESS = 2

In = TypeVar("In")
Out = TypeVar("Out")


def mapped(function: Callable[[In], Out], items: Iterable[In], processes: int, *, chunk: int = 1) -> Iterator[Out]:
    """``function`` of each item, in the items' order; with 1 process in this one.

    Items go to the processes ``chunk`` at a time, and at most two chunks per process are on their way. Processes leave
    when this one is gone; an interrupt from the keyboard is this one's to heed. Raises ChildProcessError where one was
    killed.
    """
    if processes == 1:
        yield from map(function, items)
        return
    # forking spares the children the import of the main program; they get what they need with their items
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin)
    waiting: deque[Future[list[Out]]] = deque()
    iterator = iter(items)
    try:
        while some := list(islice(iterator, chunk)):
            waiting.append(pool.submit(_each, function, some))
            if len(waiting) >= _WAITING_PER_PROCESS * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError("a worker process was killed, perhaps for lack of memory; try fewer") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _each(function: Callable[[In], Out], items: list[In]) -> list[Out]:
    return [function(item) for item in items]


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
