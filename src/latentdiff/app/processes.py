"""Which of a run's processes this is, told by the environment before torch or Lightning are there; who speaks."""

from __future__ import annotations

import os
import sys

from latentdiff.config.errors import InputError

PLACES = (("RANK",), ("NODE_RANK", "LOCAL_RANK"), ("SLURM_PROCID",))
"""Set by torchrun, by Lightning for the processes that it starts, and by srun; zero in the first process alone."""

FIRST_STAGE = "LATENTDIFF_FIRST_STAGE"
"""Set in the process that trains the first stage for another command."""

INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in whose shell Lightning starts the other processes itself, as without SLURM."""


def is_first() -> bool:
    """Whether this is the process that speaks for the run, on whatever node."""
    told = next((names for names in PLACES if names[-1] in os.environ), ())
    return all(os.environ.get(name, "0") == "0" for name in told)


def say(line: str) -> None:
    """On standard output, by the first process alone."""
    if is_first():
        print(line, flush=True)


def warn(line: str) -> None:
    """On standard error, by the first process alone."""
    if is_first():
        print(f"warning: {line}", file=sys.stderr, flush=True)


def launched() -> int | None:
    """Processes that torchrun or srun has started, None where the program starts the others itself."""
    if "RANK" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "LOCAL_RANK" not in os.environ and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        tasks = int(os.environ["SLURM_NTASKS"])
        return None if tasks == 1 and _is_interactive() else tasks
    return None


def check_count(expected: int) -> None:
    """Raises InputError where a launcher has started another number of processes than the configuration asks for, and
    in srun's tasks that Lightning would not take for those of one run."""
    count = launched()
    if "RANK" not in os.environ and count is not None and _is_interactive():
        raise InputError(
            f"trainer: srun started {count} tasks in a job named '{os.environ['SLURM_JOB_NAME']}', in which Lightning "
            "starts the processes itself; give srun --job-name=NAME, or one task in which trainer=ddp starts the others"
        )
    if count not in (None, expected):
        raise InputError(
            f"trainer: the launcher started {count} processes, trainer.devices and trainer.num_nodes ask for {expected}"
            "; make them the launcher's processes per node and nodes, with trainer=ddp or trainer=fsdp"
        )


def _is_interactive() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in INTERACTIVE
