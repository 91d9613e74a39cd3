"""The run directory: where it is, that it can be written, and from which checkpoint in it to go on."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from latentdiff.app.processes import is_first, launched, warn
from latentdiff.checkpoint import shelf, store
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import load_config
from latentdiff.training import slurm

CHILD_RUN_DIR = "LATENTDIFF_RUN_DIR"
"""Tells the processes that Lightning starts for the other devices where rank 0 writes."""

REQUEUED = "SLURM_RESTART_COUNT"
"""How often SLURM has started this job again; absent the first time."""


def prepare(run_dir: str | None, *, outputs: str, name: str) -> Path:
    """The run's directory, made and found writable; unless one is given ``outputs/<name>/<date-time>``, in a SLURM job
    a folder named by the job and the command line, which the job finds again when it was requeued."""
    if not is_first() and CHILD_RUN_DIR in os.environ:
        return Path(os.environ[CHILD_RUN_DIR])
    parent = Path(outputs) / name
    path = made(Path(run_dir) if run_dir else _of_slurm_job(parent) or fresh(parent))
    os.environ[CHILD_RUN_DIR] = str(path)
    return path


def made(path: Path, key: str = "run_dir") -> Path:
    """A folder, made and found writable. Raises InputError, which names the ``key`` that gives another."""
    with _refused(path, key):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-probe-{uuid.uuid4().hex[:8]}"
        probe.write_text("")
        probe.unlink()
    return path


@contextlib.contextmanager
def _refused(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{key}: '{path}' cannot be written ({error.strerror}); give another with {key}=DIR"
        ) from error


def _of_slurm_job(parent: Path) -> Path | None:
    """The same for the same command in the same job; another command of the job has another."""
    job, command = slurm.job(), "\0".join(sys.argv[1:])
    return None if job is None else parent / f"slurm-{job}-{hashlib.sha256(command.encode()).hexdigest()[:8]}"


def fresh(parent: Path) -> Path:
    """A date-time folder, made here: jobs of one sweep start within a second."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    if (launched() or 1) > 1:
        raise InputError(
            "run_dir: each process that the launcher started would make a folder of its own; give run_dir=DIR, on a "
            "file system that all nodes share"
        )
    for count in itertools.count(1):
        path = parent / (stamp if count == 1 else f"{stamp}_{count}")
        with _refused(parent, "run_dir"), contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def resume_from(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint to go on from, verified: ``auto`` (the newest whole one of the run, if it has any), ``never``,
    ``last`` (the newest whole one, without ``best``), ``best``, or a path.

    A run that ``best`` or a path began goes on with its own newest one when they are given again, one that ``never``
    began when SLURM has queued its job again. Raises InputError where there are checkpoints and none is whole, where
    the one that is named is damaged, and where the run has others that training from it would overwrite.
    """
    own = run_dir / "checkpoints"
    if resume == "auto":
        return _newest(own, shelf.standing(own))
    if resume == "last":
        return _newest(own, shelf.standing(own, best=False)) or store.resolve(own / store.LAST)
    newest = None
    if shelf.standing(own) and (resume != "never" or os.environ.get(REQUEUED, "0") != "0"):
        newest = _newest(own, shelf.standing(own))
        if load_config(newest / store.CONFIG).get("resume") == resume:
            return newest
    if resume == "never":
        if shelf.standing(own):
            raise InputError(
                f"run_dir: '{run_dir}' already holds checkpoints and resume=never would overwrite them; "
                "give another run_dir, or resume=auto to go on"
            )
        return None
    named = _named(_wanted(own, resume))
    if newest is not None and not _is_as_new(named, newest):
        raise InputError(
            f"resume: '{run_dir}' holds '{newest.name}' of batch {_batches(newest)}, which training from '{named}' "
            f"(batch {_batches(named)}) would overwrite; go on from there with resume=auto, or start from {named.name} "
            f"in another run_dir: resume={named} run_dir=DIR"
        )
    return named


def _wanted(own: Path, resume: str) -> Path:
    try:
        return store.resolve(own / resume if resume == store.BEST else resume, prefer=(store.LAST, store.BEST))
    except InputError as error:
        raise InputError(f"resume: expected auto, never, last, best or the path of a checkpoint; {error}") from error


def _is_as_new(named: Path, newest: Path) -> bool:
    """Whether it is the run's newest, or another of the run of the same batches: ``best``."""
    return named.parent.resolve() == newest.parent.resolve() and _batches(named) == _batches(newest)


def _batches(path: Path) -> int:
    return store.read_manifest(path).counters["batches_seen"]


def _newest(folder: Path, found: list[Path]) -> Path | None:
    """The first whole one, with a line about each that is passed over."""
    path, faults = shelf.first_whole(found)
    if found and path is None:
        raise InputError(
            f"run_dir: none of the checkpoints in '{folder}' is whole, and a run does not start again over what is "
            "left of it; copy one back, or give another run_dir\n  " + "\n  ".join(faults)
        )
    for fault in faults:
        warn(f"passed over: {fault}")
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
