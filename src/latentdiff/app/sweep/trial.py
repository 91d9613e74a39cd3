"""One trial of a search: train.py in a process of its own, and what its metrics.jsonl says meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from latentdiff.app.run.run_dir import CHILD_RUN_DIR
from latentdiff.app.sweep.curve import Curve, curve_of, lines_of
from latentdiff.app.sweep.record import is_worked_in

LOG = "log.txt"
NOT_PASSED_ON = (CHILD_RUN_DIR, "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


class TrialProcess:
    """``poll`` starts it as soon as no other process works in its run directory: one that a killed search has left goes
    on to its end first.

    Args:
        command: without ``run_dir``.
        environment: variables beside those of this process, for the devices that it may use.
    """

    def __init__(self, *, command: Sequence[str], run_dir: Path, environment: Mapping[str, str]):
        self.command = [*command, f"run_dir={run_dir}", "resume=auto"]
        self.run_dir, self.environment = run_dir, environment
        self._process: subprocess.Popen | None = None
        run_dir.mkdir(parents=True, exist_ok=True)

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self._process is None:
            if not is_worked_in(self.run_dir):
                self._start()
            return None
        return self._process.poll()

    def stop(self, number: int) -> bool:
        """Sends a signal, after which it saves its state and leaves; False where it has not been started."""
        if self._process is None:
            return False
        if self._process.poll() is None:
            self._process.send_signal(number)
        return True

    def _start(self) -> None:
        """In a session of its own, so that a Ctrl-C on the terminal reaches it once, through this process."""
        environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
        with (self.run_dir / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**environment, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def measured(run_dir: Path, objective: str) -> tuple[Curve, set[str]]:
    """The objective so far, and the names of everything that was measured."""
    lines = lines_of(run_dir)
    return curve_of(lines, objective), {name for line in lines for name in line}


def last_error(run_dir: Path, code: int) -> str:
    """What the trial said of its end, in a line; the signal's name where one has killed it."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    text = (run_dir / LOG).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = (errors or lines or [""])[-1]
    return f"exit code {code}: {last}"
