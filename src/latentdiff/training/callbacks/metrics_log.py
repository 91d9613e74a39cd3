"""The run's record: ``metrics.jsonl``, the loggers, what it costs, and the alarm for losses that are not finite."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import PassThroughProfiler

from latentdiff import durable
from latentdiff.config.errors import RunError
from latentdiff.training.callbacks import echo as echoed
from latentdiff.training.callbacks.at_least import at_least_one
from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.cost_of_training import DataWait, peak_memory
from latentdiff.training.record import FILE
from latentdiff.training.run_loggers import GoesOn, that_take

_log = logging.getLogger(__name__)


class NonFiniteError(RunError):
    """A logged value is NaN or infinite: going on would train on ruined weights."""


class MetricsLog(Callback):
    """Every ``every`` batches and after each validation: one line of ``metrics.jsonl``, the same to every logger.

    The axis of all loggers is ``batches_seen``; each line also has ``images_seen``. The last batch has a line too.
    Values are means over the ranks. A resumed run drops the lines that were written after its checkpoint. Lines that
    the disk refuses wait in memory for the next; neither they nor a logger's files end the run.

    Beside what the module logs there are, of the first rank and since the line before, ``images_per_second``,
    ``data_wait`` (share of the time in which training waited for data; not under another profiler than Lightning's
    default) and ``memory_gib`` (see ``cost_of_training.peak_memory``).

    Args:
        run_dir: where ``metrics.jsonl`` is written (rank 0 only).
        every: batches between lines.
        echo: print of each line what matters most too, for logs without a progress bar.
    """

    def __init__(self, *, run_dir: str, every: int = 50, echo: bool = False):
        self.path = Path(run_dir) / FILE
        self.every, self.echo = at_least_one("log.every", every), echo
        self._since: tuple[float, int, int] | None = None
        """Time, images and batches seen when the interval began."""
        self._data_wait: DataWait | None = None
        self._validated_at = -1
        """Batches seen at the validation whose line stands already: resumed, a run may repeat it."""
        self._waiting: list[str] = []
        """Lines that the disk has not taken yet."""
        self._told: set[str] = set()
        """Of what it was said that the disk refuses it."""

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if type(trainer.profiler) is PassThroughProfiler:
            trainer.profiler = self._data_wait = DataWait()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        failure = None
        if trainer.is_global_zero and self.path.exists():
            try:
                _drop_lines_after(self.path, module.counters.batches_seen)
                self._validated_at = _last_validation(self.path)
            except OSError as error:
                failure = f"'{self.path}' cannot be continued: {error}; make it readable and writable, or move it away"
        self._validated_at, failure = trainer.strategy.broadcast((self._validated_at, failure))
        if failure is not None:
            raise RunError(failure)
        for logger in that_take(trainer, GoesOn) if trainer.is_global_zero else ():
            with not_fatal(type(logger).__name__, told=self._told):
                logger.go_on(module.counters.batches_seen)
        self._begin_interval(module)

    def _begin_interval(self, module: pl.LightningModule) -> None:
        self._since = (time.perf_counter(), module.counters.images_seen, module.counters.batches_seen)
        if self._data_wait is not None:
            self._data_wait.take()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if module.counters.batches_seen % self.every and not trainer.is_last_batch:
            return
        seconds = max(time.perf_counter() - self._since[0], 1e-9)
        speed = (module.counters.images_seen - self._since[1]) / seconds
        costs = {"images_per_second": speed, "memory_gib": peak_memory(module.device)}
        if self._data_wait is not None:
            costs["data_wait"] = min(1.0, self._data_wait.take() / seconds)
        left = (trainer.num_training_batches - batch_index - 1) * seconds
        left /= max(1, module.counters.batches_seen - self._since[2])
        self._begin_interval(module)
        module.log("images/s", speed, prog_bar=True, logger=False)
        self._write(trainer, module, "train/", costs, seconds_left=left)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            if module.counters.batches_seen != self._validated_at:
                self._write(trainer, module, "val/", {})
            self._begin_interval(module)

    def record(self, trainer: pl.Trainer, module: pl.LightningModule, values: dict[str, float]) -> None:
        """A line of its own for values that are the same on all ranks; the time until now is none of training's.

        One that is not finite costs a warning: it is a measurement's, and ruins no weights.
        """
        bad = self._put(trainer, module, values)
        if bad and trainer.is_global_zero:
            _log.warning("%s not finite at batch %d", ", ".join(bad), module.counters.batches_seen)
        self._begin_interval(module)

    def holds(self, prefix: str, batches_seen: int) -> bool:
        """Whether the file has a line of that batch with names that begin so."""
        if not self.path.exists():
            return False
        begins = f'"{prefix}'.encode()
        return any(begins in line and _seen(line) == batches_seen for line in _lines(self.path))

    def _write(self, trainer, module, prefix: str, extra: dict[str, float], *, seconds_left: float = math.inf) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        if bad := self._put(trainer, module, _mean_over_ranks(values, module) | extra, seconds_left):
            raise NonFiniteError(
                f"{', '.join(bad)} not finite at batch {module.counters.batches_seen}: training stopped before a "
                "checkpoint could keep it. Resume from the last one with a lower optim.lr, or trainer.precision=32-true"
            )

    def _put(self, trainer, module, values: dict[str, float], seconds_left: float = math.inf) -> list[str]:
        """Names of the values that are not finite."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        counters = module.counters.as_dict()
        if trainer.is_global_zero:
            valid = {name: None if name in bad else value for name, value in values.items()}
            self._waiting.append(json.dumps({**counters, **valid}) + "\n")
            self._write_waiting()
            for logger in trainer.loggers:
                with not_fatal(type(logger).__name__, told=self._told):
                    logger.log_metrics(
                        {**values, "images_seen": counters["images_seen"]}, step=counters["batches_seen"]
                    )
            if self.echo:
                print(echoed.line(counters["batches_seen"], values, seconds_left), flush=True)
        return bad

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._finish()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._waiting:
            self._write_waiting()
        if self._waiting:
            _log.warning("the last %d lines of '%s' are lost: the disk refused them", len(self._waiting), self.path)

    def _write_waiting(self) -> None:
        with not_fatal(self.path, told=self._told):
            durable.append(self.path, "".join(self._waiting))
            self._waiting.clear()


def _mean_over_ranks(values: dict[str, float], module: pl.LightningModule) -> dict[str, float]:
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total = torch.tensor(list(values.values()), device=module.device)
    dist.all_reduce(total)
    return dict(zip(values, (total / dist.get_world_size()).tolist()))


def _drop_lines_after(path: Path, batches_seen: int) -> None:
    """Those of batches that the checkpoint has not seen, and a last one that a killed process left unfinished.

    Lines are in the order of the batches. The file only gets shorter: a full disk allows that.
    """
    lines = _lines(path)
    keep = max((i + 1 for i, line in enumerate(lines) if _seen(line) <= batches_seen), default=0)
    if keep < len(lines):
        os.truncate(path, sum(map(len, lines[:keep])))
        durable.flush(path)


def _last_validation(path: Path) -> int:
    seen = [_seen(line) for line in _lines(path) if b'"val/' in line]
    return max((int(batches) for batches in seen if batches < math.inf), default=-1)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def _seen(line: bytes) -> float:
    """Infinite where the line is not whole."""
    try:
        return json.loads(line)["batches_seen"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
