"""The run directory: where it is, that it can be written, and from which checkpoint in it to go on."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import uuid
from pathlib import Path

from latentdiff.app.processes import is_first, launched
from latentdiff.checkpoint import shelf, store
from latentdiff.config.errors import InputError
from latentdiff.training import slurm

CHILD_RUN_DIR = "LATENTDIFF_RUN_DIR"
"""Tells the processes that Lightning starts for the other devices where rank 0 writes."""


def prepare(run_dir: str | None, *, outputs: str, name: str) -> Path:
    """The run's directory, made and found writable; unless one is given ``outputs/<name>/<date-time>``, in a SLURM job
    a folder named by the job and the command line, which the job finds again when it was requeued."""
    if not is_first() and CHILD_RUN_DIR in os.environ:
        return Path(os.environ[CHILD_RUN_DIR])
    path = Path(run_dir) if run_dir else _of_slurm_job(Path(outputs) / name) or _fresh(Path(outputs) / name)
    probe = path / f".write-probe-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"run_dir: '{path}' cannot be written ({error.strerror}); give another with run_dir=DIR"
        ) from error
    os.environ[CHILD_RUN_DIR] = str(path)
    return path


def say(line: str) -> None:
    """On standard error, of the first process alone."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def _of_slurm_job(parent: Path) -> Path | None:
    """The same for the same command in the same job; another command of the job has another."""
    job, command = slurm.job(), "\0".join(sys.argv[1:])
    return None if job is None else parent / f"slurm-{job}-{hashlib.sha256(command.encode()).hexdigest()[:8]}"


def _fresh(parent: Path) -> Path:
    """A date-time folder that does not exist yet: jobs of one sweep start within a second."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    if (launched() or 1) > 1:
        raise InputError(
            "run_dir: each process that the launcher started would make a folder of its own; give run_dir=DIR, on a "
            "file system that all nodes share"
        )
    path, count = parent / stamp, 1
    while path.exists():
        count += 1
        path = parent / f"{stamp}_{count}"
    return path


def resume_from(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint to go on from, verified: ``auto`` (the newest whole one of the run, if it has any), ``never``,
    ``last`` (the newest whole one, without ``best``), ``best``, or a path.

    Raises InputError where there are checkpoints and none is whole, and where the one that is named is damaged.
    """
    own = run_dir / "checkpoints"
    if resume == "auto":
        return _newest(own, shelf.standing(own))
    if resume == "never":
        if shelf.standing(own):
            raise InputError(
                f"run_dir: '{run_dir}' already holds checkpoints and resume=never would overwrite them; "
                "give another run_dir, or resume=auto to go on"
            )
        return None
    if resume == "last":
        return _newest(own, shelf.standing(own, best=False)) or store.resolve(own / store.LAST)
    return _named(store.resolve(own / resume if resume == store.BEST else resume, prefer=(store.LAST, store.BEST)))


def _newest(folder: Path, found: list[Path]) -> Path | None:
    """The first whole one, with a line about each that is passed over."""
    path, faults = shelf.first_whole(found)
    if found and path is None:
        raise InputError(
            f"run_dir: none of the checkpoints in '{folder}' is whole, and a run does not start again over what is "
            "left of it; copy one back, or give another run_dir\n  " + "\n  ".join(faults)
        )
    for fault in faults:
        say(f"warning: passed over: {fault}")
    return path


def _named(path: Path) -> Path:
    try:
        store.verify(path)
    except InputError as error:
        others = [each for each in shelf.standing(path.parent) if each != path]
        whole, _ = shelf.first_whole(others)
        hint = f". Whole is '{whole}': name it with resume={whole}" if whole else ""
        raise InputError(f"resume: {error}{hint}") from error
    return path
