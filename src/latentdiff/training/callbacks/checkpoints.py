"""Writes ``checkpoints/last`` and ``checkpoints/best``, also when the run is told to stop."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from latentdiff.checkpoint import store
from latentdiff.training.checkpoint_io import describe


class Stopped(BaseException):
    """The run was told to stop by a signal and has saved its state."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; state saved")
        self.signal = number


class Checkpoints(Callback):
    """Saves every ``every`` batches, at the end, after a better validation, and on Ctrl-C or SIGTERM.

    A signal only sets a flag; all ranks agree on it after a batch, save together and leave. A second Ctrl-C
    interrupts at once.

    Args:
        run_dir: holds ``checkpoints/``.
        every: batches between saves of ``last``.
        monitor: logged value that decides ``best``, or None.
        maximize: whether more is better.
    """

    def __init__(self, *, run_dir: str, every: int = 1000, monitor: str | None = None, maximize: bool = False):
        self.folder = Path(run_dir) / "checkpoints"
        self.every, self.monitor, self.maximize = every, monitor, maximize
        self.best: float | None = None
        self._signal = 0
        self._saved_at = -1
        self._seconds_before = 0.0
        self._began = 0.0

    def on_load_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        self._seconds_before = checkpoint["latentdiff"]["extra"].get("seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        if self.monitor is not None and (self.folder / "best" / store.MANIFEST).exists():
            self.best = store.read_manifest(self.folder / "best").extra.get(self.monitor)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        stop = self._agreed_signal(module)
        if stop or module.counters.batches_seen % self.every == 0:
            self._save(trainer, module, "last")
        if stop:
            raise Stopped(stop)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.monitor is None or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or ((value > self.best) == self.maximize and value != self.best):
            self.best = value
            self._save(trainer, module, "best")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._save(trainer, module, "last")

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, name: str) -> None:
        now = module.counters.batches_seen
        if name == "last" and self._saved_at == now:
            return
        if hasattr(module, "measure_latents"):
            module.measure_latents()
        trainer.save_checkpoint(self.folder / name)
        if name == "last":
            self._saved_at = now

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        """Adds what the manifest shall know: progress, seconds of training, and the last validation's values."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        seconds = self._seconds_before + time.perf_counter() - self._began
        checkpoint["latentdiff"] = describe(module, trainer.world_size, {"seconds": round(seconds, 1), **values})

    def _agreed_signal(self, module: pl.LightningModule) -> int:
        if not (dist.is_available() and dist.is_initialized()):
            return self._signal
        flag = torch.tensor(self._signal, device=module.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag)
