"""What training asks of SLURM: the job's name, and to be queued again."""

from __future__ import annotations

import logging
import os
import subprocess

_log = logging.getLogger(__name__)

PATIENCE = 60
"""Seconds that ``scontrol`` may take."""


def job() -> str | None:
    """Number of the SLURM job that this process is part of, ``ARRAY_TASK`` in a job array; None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> None:
    """Queues this job again, outside SLURM nothing. A refusal is reported only: the state is saved by then."""
    name = job()
    if name is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", name], check=True, timeout=PATIENCE, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or error
        _log.error("SLURM job %s was not requeued (%s); submit the same command again to go on", name, why)
    else:
        print(f"SLURM job {name} requeued", flush=True)
