"""One job of a multirun, wherever Hydra's launcher runs it: in this process, in another one, or on another machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from latentdiff.app.exit_codes import DONE, FAILED, REFUSED, SIGNALLED, judge
from latentdiff.app.processes import is_first, say
from latentdiff.app.sweep import record as record
from latentdiff.config.quoting import requote

PROCESS_GROUP = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Set by Lightning for its child processes; the next job of a multirun must not find them."""


@dataclass(frozen=True)
class GridJob:
    """What a launcher calls with a job's configuration; it returns the job's exit code.

    Args:
        script, options: start a job's own processes, without its overrides.
        folder: holds the sweep's record.
        numbers, names: of the jobs in the order in which the launcher counts them.
        ends_all: whether a job that a signal has ended ends those after it too: they are in the same process.
    """

    job: Callable[[DictConfig], None]
    script: str
    options: Sequence[str]
    folder: Path
    numbers: Sequence[int]
    names: Sequence[str]
    ends_all: bool

    def __call__(self, cfg: DictConfig) -> int:
        at = HydraConfig.get().job.num
        number = self.numbers[at]
        claimed = record.claim(self.folder, number) if is_first() else None
        if is_first() and claimed is None:
            say(f"job {number} of {self.folder.name}: another process sees to it")
            return FAILED
        say(f"job {number} of {self.folder.name}: {self.names[at]}")
        with claimed or contextlib.nullcontext(), self._noted(number) as outcome, _environment_restored():
            # The processes that Lightning starts, and the first stage's, run sys.argv: this job only, not the sweep.
            sys.argv = [self.script, *self.options, *map(requote, HydraConfig.get().overrides.task)]
            try:
                self.job(cfg)
            except BaseException as error:
                outcome.update(_judged(error))
        if outcome["code"] > SIGNALLED and self.ends_all:
            raise SystemExit(outcome["code"])
        return outcome["code"]

    @contextlib.contextmanager
    def _noted(self, number: int) -> Iterator[dict]:
        """Keeps the record; the outcome is filled in by the caller."""
        outcome: dict = {"code": DONE, "state": record.DONE, "reason": ""}
        if not is_first():
            yield outcome
            return
        record.put(self.folder, number, record.RUNNING)
        try:
            yield outcome
        finally:
            record.put(self.folder, number, outcome["state"], outcome["reason"])


def _judged(error: BaseException) -> dict:
    """What becomes of a job that has not come to its end. One that leaves without a fault had no more time
    (``trainer.max_time``): it is not done."""
    code = judge(error)
    if code == DONE:
        return {"code": FAILED, "state": record.STOPPED, "reason": "trainer.max_time was up"}
    if code > SIGNALLED:
        return {"code": code, "state": record.STOPPED, "reason": ""}
    state = record.REFUSED if code == REFUSED else record.FAILED
    return {"code": code, "state": state, "reason": str(error) or type(error).__name__}


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    """The command line and the environment as before, and no process group left."""
    argv, own = list(sys.argv), {name: os.environ.get(name) for name in PROCESS_GROUP}
    try:
        yield
    finally:
        sys.argv = argv
        torch = sys.modules.get("torch")
        if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in own.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
