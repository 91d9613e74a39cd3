"""Which of a run's processes this is, told by the environment before torch or Lightning are there."""

from __future__ import annotations

import os

from latentdiff.config.errors import InputError

PLACES = (("RANK",), ("NODE_RANK", "LOCAL_RANK"), ("SLURM_PROCID",))
"""Set by torchrun, by Lightning for the processes that it starts, and by srun; zero in the first process alone."""


def is_first() -> bool:
    """Whether this is the process that speaks for the run, on whatever node."""
    told = next((names for names in PLACES if names[-1] in os.environ), ())
    return all(os.environ.get(name, "0") == "0" for name in told)


def launched() -> int | None:
    """Processes that torchrun or srun has started, None where the program starts the others itself."""
    if "RANK" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "LOCAL_RANK" not in os.environ and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:
        return int(os.environ["SLURM_NTASKS"])
    return None


def check_count(expected: int) -> None:
    """Raises InputError where a launcher has started another number of processes than the configuration asks for."""
    count = launched()
    if count not in (None, expected):
        raise InputError(
            f"trainer: the launcher started {count} processes, trainer.devices and trainer.num_nodes ask for {expected}"
            "; make them the launcher's processes per node and nodes, with trainer=ddp or trainer=fsdp"
        )
