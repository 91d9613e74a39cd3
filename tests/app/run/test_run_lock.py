"""One process at a time in a run directory; who holds the lock keeps it as long as it lives, and no longer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latentdiff.app.run.run_lock import alone_in
from latentdiff.config.errors import InputError


def test_a_second_process_is_refused_and_told_which_is_the_first(tmp_path: Path) -> None:
    told = rf"process {os.getpid()} on .* works in '{tmp_path}'"
    with alone_in(tmp_path), pytest.raises(InputError, match=told), alone_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with alone_in(tmp_path):
        pass


def test_other_ranks_take_no_lock(tmp_path: Path, monkeypatch) -> None:
    with alone_in(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with alone_in(tmp_path):
            pass


def test_who_waits_goes_on_when_the_other_ends(tmp_path: Path, capsys) -> None:
    order = []

    def wait() -> None:
        with alone_in(tmp_path, wait=True):
            order.append("second")
            with pytest.raises(InputError), alone_in(tmp_path):
                pass
            order.append("alone")

    with alone_in(tmp_path):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second", "alone"]
    assert f"waiting: process {os.getpid()}" in capsys.readouterr().out


HOLDER = """
import multiprocessing, os, sys, time
from pathlib import Path
from latentdiff.app.run.run_lock import alone_in

def work():
    print(os.getpid(), flush=True)  # it runs, so it has closed what it was forked with
    time.sleep(100)

with alone_in(Path(sys.argv[1])):
    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep(100)
"""


def test_a_killed_run_leaves_no_lock_though_its_worker_lives(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(InputError, match=f"process {process.pid}"), alone_in(tmp_path):
            pass
        process.kill()
        process.wait()
        os.kill(worker, 0)
        with alone_in(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_a_worker_that_ends_releases_nothing(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=int)
        worker.start()
        worker.join()
        with pytest.raises(InputError), alone_in(tmp_path):
            pass


def test_a_file_system_without_locks_costs_a_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone_in(tmp_path))
        stack.enter_context(alone_in(tmp_path))
    assert capsys.readouterr().err.count("file system without locks") == 2
