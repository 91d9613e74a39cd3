"""``sweep.json``: what a sweep varies, its jobs, and how each has ended; kept current job by job."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

from latentdiff.app.run import run_lock
from latentdiff.config.errors import InputError
from latentdiff.durable import put_file

NAME, LOCK, CLAIMS = "sweep.json", ".sweep.lock", ".claims"
FORMAT = 1

PLANNED, RUNNING, DONE, PRUNED = "planned", "running", "done", "pruned"
FAILED, REFUSED, STOPPED = "failed", "refused", "stopped"
STATES = (DONE, PRUNED, RUNNING, PLANNED, STOPPED, FAILED, REFUSED)
"""States of a job. ``stopped``: by a signal, its limit of time, or killed; the same command goes on with it."""

Settings = Mapping[str, str]
"""Swept key -> its value as written on a command line."""


@dataclass(frozen=True)
class Job:
    """``overrides``: what it trains, without where it writes. ``run_dir``: relative to the sweep's folder where it lies
    in it. ``reason``: why it failed, was refused or was pruned."""

    number: int
    settings: Settings
    overrides: list[str]
    run_dir: str
    state: str = PLANNED
    reason: str = ""


@dataclass(frozen=True)
class Sweep:
    """``objective``: a name in metrics.jsonl, None where the program writes none. ``command``: what was typed."""

    command: str
    swept: list[str]
    objective: str | None
    maximize: bool
    jobs: Mapping[int, Job] = field(default_factory=dict)

    def with_job(self, job: Job) -> Sweep:
        return replace(self, jobs={**self.jobs, job.number: job})

    def place(self, folder: Path, number: int) -> Path:
        """The job's run directory."""
        return folder / self.jobs[number].run_dir


def exists(folder: Path) -> bool:
    return (folder / NAME).is_file()


def read(folder: Path) -> Sweep:
    """Raises InputError where there is no sweep, or its record is not readable."""
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise InputError(f"'{path}' was written by another version of latentdiff")
        jobs = {job["number"]: Job(**job) for job in content.pop("jobs")}
        return Sweep(**content, jobs=jobs)
    except FileNotFoundError as error:
        raise InputError(f"there is no sweep in '{folder}': no file {NAME}; give a sweep's own folder") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' cannot be read: {error}") from error


def write(folder: Path, sweep: Sweep) -> None:
    content = {"format": FORMAT, **asdict(sweep), "jobs": [asdict(sweep.jobs[n]) for n in sorted(sweep.jobs)]}
    put_file(folder / NAME, (json.dumps(content, indent=1) + "\n").encode())


def put(folder: Path, number: int, state: str, reason: str = "") -> None:
    """Notes a job's state. Jobs in several processes do so at once."""
    update(folder, lambda sweep: sweep.with_job(replace(sweep.jobs[number], state=state, reason=reason)))


def update(folder: Path, change: Callable[[Sweep], Sweep]) -> None:
    with locked(folder):
        write(folder, change(read(folder)))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes the record."""
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(folder: Path, number: int) -> IO[str] | None:
    """The file whose lock says that a process sees to the job, until it is closed; None where another one does."""
    path = folder / CLAIMS / str(number)
    path.parent.mkdir(exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in run_lock.TAKEN:
            return None
        raise
    os.register_at_fork(after_in_child=file.close)  # DataLoader workers may outlive a process that is killed
    return file


def seen(folder: Path, sweep: Sweep) -> Sweep:
    """The record with the jobs that were killed told from those that run."""
    for job in sweep.jobs.values():
        held = _is_held(folder / CLAIMS / str(job.number)) or is_worked_in(folder / job.run_dir)
        if job.state == RUNNING and not held:
            sweep = sweep.with_job(replace(job, state=STOPPED))
    return sweep


def is_worked_in(run_dir: Path) -> bool:
    """Whether a process holds the lock of a run directory."""
    return _is_held(run_dir / run_lock.NAME)


def _is_held(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in run_lock.TAKEN
    return False
