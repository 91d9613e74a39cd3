"""Stops a run in good order: on a signal, or when its time is up. All ranks leave after the same batch."""

from __future__ import annotations

import signal
import time

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback, Timer

from latentdiff.training import slurm
from latentdiff.training.callbacks.checkpoints import Checkpoints

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
MARGIN = 1.5
"""Times the last measured save that must be left of ``trainer.max_time``."""


class Stopped(BaseException):
    """The run was told to stop and has saved its state. ``code`` is the exit code that says so."""

    def __init__(self, why: str, code: int):
        super().__init__(why)
        self.code = code


class Interruption(Callback):
    """Saves and raises ``Stopped`` after Ctrl-C, SIGTERM or SIGUSR1, and before ``trainer.max_time`` is up.

    A signal only sets a flag. After every batch of training or validation the ranks agree on it (one reduction of three
    integers between the hosts, which waits for no GPU), save together and leave. A second Ctrl-C interrupts at once,
    unless a checkpoint is being written. Under SLURM, SIGUSR1 (``#SBATCH --signal=SIGUSR1@300``) also queues the job
    again. Lightning's handlers are replaced: those for SLURM would save and requeue from within the handler, at
    another batch on every rank.

    The time counts from when this object was made, in each process anew. It ends when less is left than ``MARGIN``
    saves and the step to the next boundary took; a run that has not saved by half of it saves once to know. Lightning's
    ``Timer`` gives its limit and is taken out: it would end the run without a margin, as if it were complete.

    Has to come after ``Checkpoints`` among the callbacks.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._limit: float | None = None
        self._began = self._boundary_at = time.monotonic()
        self._saving_since: float | None = None
        self._save_took: float | None = None
        self._group: dist.ProcessGroup | None = None

    @property
    def pending(self) -> bool:
        """Whether this process has been told to stop: what only looks, a grid of samples say, should make way."""
        return self._signal != 0

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]
        if timers:
            self._limit = timers[0].time_remaining()
            trainer.callbacks = [callback for callback in trainer.callbacks if callback not in timers]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._boundary_at = time.monotonic()
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        for number in SIGNALS:  # Lightning puts the handlers back when fit ends
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if number == self._signal == signal.SIGINT and self._saving_since is None:
            raise KeyboardInterrupt
        self._signal = self._signal or number

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        self._saving_since = time.monotonic()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        self._boundary(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note_save()

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_index, dataloader_idx=0) -> None:
        if not trainer.sanity_checking:
            self._boundary(trainer, module)

    def _boundary(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note_save()
        now = time.monotonic()
        judged = self._judge_time(now - self._began, now - self._boundary_at)
        number, time_is_up, measure = self._agreed([self._signal, *judged])
        if number or time_is_up:
            self._stop(trainer, module, number)
        if measure:
            self._save(trainer, module)
        self._boundary_at = time.monotonic()

    def _note_save(self) -> None:
        """That a save, if there was one, is over; its time is none of the step to the next boundary."""
        if self._saving_since is not None:
            self._save_took, self._saving_since = time.monotonic() - self._saving_since, None
            self._boundary_at += self._save_took

    def _judge_time(self, elapsed: float, step: float) -> tuple[bool, bool]:
        """Whether the time is up, and whether a save should be measured."""
        if self._limit is None:
            return False, False
        needed = step + MARGIN * (self._save_took or 0.0)
        return elapsed + needed >= self._limit, self._save_took is None and elapsed > self._limit / 2

    def _agreed(self, values: list[int]) -> list[int]:
        """The largest of each over the ranks."""
        if self._group is None:
            return values
        found = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        return found.tolist()

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """False where there is nothing that saves."""
        self._saving_since = time.monotonic()
        saving = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]
        for callback in saving:
            callback.save_now(trainer, module)
        self._note_save()
        return bool(saving)

    def _stop(self, trainer: pl.Trainer, module: pl.LightningModule, number: int) -> None:
        what = "state saved" if self._save(trainer, module) else "nothing saved (there is no callbacks.checkpoints)"
        if number == signal.SIGUSR1 and trainer.is_global_zero:
            slurm.requeue()
        if self._group is not None:
            dist.barrier(self._group)  # a rank that has left may take the others down
        if not number:
            raise Stopped(f"trainer.max_time is up at batch {module.counters.batches_seen}; {what}", 0)
        raise Stopped(f"stopped by {signal.Signals(number).name}; {what}", 128 + number)


def stop_pending(trainer: pl.Trainer) -> bool:
    """Whether this process has been told to stop and is on its way to the next boundary."""
    return any(callback.pending for callback in trainer.callbacks if isinstance(callback, Interruption))
