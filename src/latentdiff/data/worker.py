"""How worker processes behave."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_TELLS_SENDER = hasattr(signal, "sigwaitinfo")
_GROUP_SIGNALS = {signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2} | ({signal.SIGTERM} if _TELLS_SENDER else set())


@contextmanager
def group_signals_blocked() -> Iterator[None]:
    """Workers forked inside never see a signal meant for the process group, in none of their threads.

    Ctrl-C and a scheduler's signals also reach the workers; if these died, the main process could not finish its batch
    and save. The main process gets signals that come meanwhile at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(worker: int) -> None:
    """In a worker: heeds a termination signal from its parent only (on systems that tell the sender; elsewhere from
    anyone), and no other signal of ``group_signals_blocked``. Workers also leave when the parent is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    if _TELLS_SENDER:
        threading.Thread(target=_leave_when_the_parent_says, daemon=True).start()


def _leave_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
