"""Messages to a program that may be slow, stuck or dead, without waiting for it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping

SAID = 3
"""Exit code of a program that has said what failed."""


class Pipe:
    """Sends JSON lines to the module ``module``, run in a process of its own, and hears the lines that it prints.

    ``send`` never waits: a thread writes. Messages beyond ``limit`` bytes that wait are dropped and counted in
    ``lost``, and so are those to a program that has ended. The program has no terminal to ask on, and is in a session
    of its own: what stops this program by its process group does not stop it in the middle of a line. Where this
    program is killed it finds the end of its input.

    Args:
        module: dotted name.
        hear: called with each line, on a thread.
        limit: bytes.
    """

    def __init__(self, module: str, *, hear: Callable[[str], None], limit: int = 64 * 2**20):
        self.lost = 0
        self._hear, self._limit = hear, limit
        self._lines: deque[bytes | None] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def send(self, message: Mapping[str, object]) -> None:
        line = _line(message)
        with self._changed:
            if self._bytes + len(line) > self._limit:
                self.lost += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify()

    def close(self, timeout: float, last: Mapping[str, object]) -> int:
        """Ends the input with the message ``last``, which no limit drops, waits for the program to end, and returns its
        exit code. After ``timeout`` seconds it is killed, and the code negative.

        The program has to end at that message: processes that this one has forked may hold its input open.
        """
        with self._changed:
            self._lines += [_line(last), None]
            self._changed.notify()
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for thread in self._threads:
            thread.join(timeout=5)
        return code

    def _write(self) -> None:
        line = None
        try:
            while (line := self._next()) is not None:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            self._process.stdin.close()
        except OSError:  # the program has ended
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with self._changed:
            self.lost += sum(waiting is not None for waiting in (line, *self._lines))
            self._lines.clear()
            self._bytes = self._limit

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines)
            line = self._lines.popleft()
            self._bytes -= 0 if line is None else len(line)
            return line

    def _read(self) -> None:
        for line in self._process.stdout:
            self._hear(line.decode(errors="replace").rstrip())


def _line(message: Mapping[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"
