"""The run directory: where it is, that it can be written, and from which checkpoint in it to go on."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError

CHILD_RUN_DIR = "LATENTDIFF_RUN_DIR"
"""Tells the processes that Lightning starts for the other devices where rank 0 writes."""


def prepare(run_dir: str | None, *, outputs: str, name: str) -> Path:
    """The run's directory, made and found writable; ``outputs/<name>/<date-time>`` unless one is given."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and CHILD_RUN_DIR in os.environ:
        return Path(os.environ[CHILD_RUN_DIR])
    path = Path(run_dir) if run_dir else _fresh(Path(outputs) / name)
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


def _fresh(parent: Path) -> Path:
    """A date-time folder that does not exist yet: jobs of one sweep start within a second."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    path, count = parent / stamp, 1
    while path.exists():
        count += 1
        path = parent / f"{stamp}_{count}"
    return path


def resume_from(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint to go on from: ``auto`` (the run's last, if any), ``never``, ``last``, ``best``, or a path."""
    own = run_dir / "checkpoints"
    if resume == "auto":
        return store.resolve(run_dir, prefer=("last", "best")) if _any(own) else None
    if resume == "never":
        if _any(own):
            raise InputError(
                f"run_dir: '{run_dir}' already holds checkpoints and resume=never would overwrite them; "
                "give another run_dir, or resume=auto to go on"
            )
        return None
    if resume in ("last", "best"):
        return store.resolve(own / resume)
    return store.resolve(resume, prefer=("last", "best"))


def _any(folder: Path) -> bool:
    """Whether there is a checkpoint; what a process killed while it wrote the first one left behind is none."""
    return folder.is_dir() and any(not entry.name.startswith(".tmp-") for entry in folder.iterdir())
