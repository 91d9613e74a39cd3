"""Ends a run that hangs, and says which rank the others wait for."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from datetime import timedelta

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from latentdiff.config.errors import InputError

CHECKS = 10
"""Looks at the clock per timeout."""


class Watchdog(Callback):
    """Ends the process with exit code 1 when nothing has moved in it for ``timeout`` seconds.

    A batch that arrives, a backward pass that begins or ends, a batch of training or validation that ends, a validation
    or a save that begins: each is a step. A thread of each rank tells the others how many steps its rank has made,
    through a store of its own: the run's communication is what hangs. When the time is over every rank prints where it
    stands and the stacks of its threads. The rank with the fewest steps is the one that the others wait for; one that
    no longer tells anything is dead.

    The timeout has to be longer than the longest wait that is in order: the first batch with compilation, a grid of
    samples, the latents' statistics before a save.

    Args:
        timeout: seconds; 0: no watch.
    """

    def __init__(self, *, timeout: float = 1800.0):
        if timeout < 0:
            raise InputError(f"callbacks.watchdog.timeout: expected seconds, at least 0 (0 = no watch), got {timeout}")
        self.timeout = timeout
        self._watch: _Watch | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.timeout:
            self._watch = _Watch(trainer, module, self.timeout)
            self._watch.start()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.ended.set()

    def step(self, where: str) -> None:
        """Something has moved; for callbacks whose work takes long as well."""
        if self._watch is not None:
            self._watch.step(where)

    def on_train_batch_start(self, *_: object) -> None:
        self.step("in its forward pass")

    def on_before_backward(self, *_: object) -> None:
        self.step("in its backward pass")

    def on_after_backward(self, *_: object) -> None:
        self.step("between backward pass and update")

    def on_train_batch_end(self, *_: object) -> None:
        self.step("waiting for a batch")

    def on_validation_start(self, *_: object) -> None:
        self.step("in validation")

    def on_validation_batch_end(self, *_: object) -> None:
        self.step("in validation")

    def on_validation_end(self, *_: object) -> None:
        self.step("waiting for a batch")

    def on_save_checkpoint(self, *_: object) -> None:
        self.step("in a save")


class _Watch(threading.Thread):
    """The thread of one rank."""

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, timeout: float):
        super().__init__(daemon=True, name="watchdog")
        self.module, self.timeout = module, timeout
        self.rank, self.ranks = trainer.global_rank, trainer.world_size
        self._launcher = trainer.strategy.launcher
        self.ended = threading.Event()
        self._steps, self._where, self._since = 0, "before its first batch", time.monotonic()
        self._told = 0
        self._store = _open_store(trainer) if self.ranks > 1 else None

    def step(self, where: str) -> None:
        self._steps, self._where, self._since = self._steps + 1, where, time.monotonic()

    def run(self) -> None:
        period = self.timeout / CHECKS
        while not self.ended.wait(period):
            self._tell()
            if time.monotonic() - self._since > self.timeout:
                self._report(period)
                if self._launcher is not None:  # a frozen process that it started does not end by itself
                    self._launcher.kill(signal.SIGKILL)
                os._exit(1)

    def _tell(self) -> None:
        """The count makes two messages differ: a rank whose message stays the same is dead."""
        self._told += 1
        text = f"{self._told}|{self._steps}|batch {self.module.counters.batches_seen}, {self._where}"
        if self._store is not None:
            try:
                self._store.set(str(self.rank), text)
            except RuntimeError:  # the store went with rank 0
                self._store = None

    def _report(self, period: float) -> None:
        lines = [
            f"error: rank {self.rank} has made no step for {self.timeout:g} s: after batch "
            f"{self.module.counters.batches_seen}, {self._where}. {self._whom_we_wait_for(period)}",
            "Its threads, the newest call first:",
        ]
        print("\n".join(lines), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        for _ in range(CHECKS // 2):  # a process that leaves takes others with it: let them speak first
            time.sleep(period)
            self._tell()

    def _whom_we_wait_for(self, period: float) -> str:
        if self.ranks == 1:
            return "The process is stuck there."
        before = self._heard()
        time.sleep(3 * period)
        self._tell()
        now = self._heard()
        if self._store is None:
            return "Rank 0 is gone, all others wait for it."
        dead = [rank for rank in range(self.ranks) if rank != self.rank and now.get(rank) == before.get(rank)]
        if dead:
            return f"Rank {_named(dead)} no longer answers: dead, stopped or cut off."
        steps = {rank: int(text.split("|")[1]) for rank, text in now.items()}
        behind = [rank for rank, count in steps.items() if count == min(steps.values())]
        if len(behind) == self.ranks:
            return "All ranks stand at the same point: compare their stacks."
        where = now[behind[0]].split("|")[2]
        return f"Rank {_named(behind)} is behind and stuck: after {where}. The others wait for it."

    def _heard(self) -> dict[int, str]:
        """The last message of every rank that has told something."""
        try:
            known = [rank for rank in range(self.ranks) if self._store is not None and self._store.check([str(rank)])]
            return {rank: self._store.get(str(rank)).decode() for rank in known}
        except RuntimeError:
            self._store = None
            return {}


def _named(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def _open_store(trainer: pl.Trainer) -> dist.TCPStore:
    """On rank 0, at a free port; to be called on every rank."""
    wait = timedelta(seconds=60)
    store = None
    if trainer.global_rank == 0:
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
    address = (store.host, store.port) if store else None
    host, port = trainer.strategy.broadcast(address)
    return store or dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=wait)
