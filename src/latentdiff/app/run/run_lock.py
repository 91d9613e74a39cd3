"""One process at a time works in a run directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from latentdiff.app.processes import is_first, say, warn
from latentdiff.config.errors import InputError

NAME = ".lock"
TAKEN, WITHOUT_LOCKS = (errno.EWOULDBLOCK, errno.EACCES), (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def alone_in(run_dir: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds ``run_dir/.lock`` (flock) for the whole run, in the first of its processes, and removes it at the end.

    The system releases it when this process ends, however it does: DataLoader workers that outlive it for a while have
    closed it, programs that it starts do not inherit it. Where another process has it, ``wait`` until it ends; else
    InputError. A file system that knows no locks costs a warning.
    """
    if not is_first():
        yield
        return
    with _taken(run_dir, wait) as file:
        os.register_at_fork(after_in_child=file.close)
        try:
            yield
        finally:
            (run_dir / NAME).unlink(missing_ok=True)


def _taken(run_dir: Path, wait: bool) -> IO[str]:
    path = run_dir / NAME
    while True:
        file = path.open("a+")
        try:
            _take(file, run_dir, wait)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # who had it has removed it meanwhile


def _take(file: IO[str], run_dir: Path, wait: bool) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise InputError(
                    f"run_dir: {holder} works in '{run_dir}'; wait until it ends, or give another run_dir"
                ) from error
            say(f"waiting: {holder} works in '{run_dir}'")
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        warn(f"'{run_dir}' is on a file system without locks: nothing keeps another process from training there too")
    file.truncate(0)
    print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
