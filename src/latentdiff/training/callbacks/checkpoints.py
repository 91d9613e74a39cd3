"""Writes ``checkpoints/last`` and ``checkpoints/best``, also when the run is told to stop."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks.metrics_log import NonFiniteError
from latentdiff.training.checkpoint_io import describe


class Stopped(BaseException):
    """The run was told to stop by a signal and has saved its state."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; state saved")
        self.signal = number


class Checkpoints(Callback):
    """Saves every ``every`` batches, at the end, after a better validation, and on Ctrl-C or SIGTERM.

    A signal only sets a flag; all ranks agree on it after a batch, save together and leave. A second Ctrl-C
    interrupts at once. Weights that are not finite are never saved.

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
        self._saved: tuple[int, int] | None = None
        """Batches seen when ``last`` was saved, and at the validation before it."""
        self._validated_at = self._measured_at = -1
        self._seconds_before = 0.0
        self._began = 0.0

    def on_load_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        self._seconds_before = checkpoint["latentdiff"]["extra"].get("seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        if self.monitor is not None and (self.folder / "best" / store.MANIFEST).exists():
            self.best = store.read_manifest(self.folder / "best").extra.get(self.monitor)
        self.best = trainer.strategy.broadcast(self.best)
        for number in (signal.SIGINT, signal.SIGTERM):  # Lightning puts the handlers back when fit ends
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
        if trainer.sanity_checking:
            return
        self._validated_at = module.counters.batches_seen
        if self.monitor is not None and self._is_better(value := self._monitored(trainer)):
            self.best = value
            self._save(trainer, module, "best")

    def _monitored(self, trainer: pl.Trainer) -> float:
        values = trainer.callback_metrics
        if self.monitor not in values:
            known = ", ".join(name for name in values if name.startswith("val/"))
            raise InputError(f"callbacks.checkpoints.monitor: '{self.monitor}' is not logged; validation logs {known}")
        return float(values[self.monitor])

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return self.best is None or (value > self.best if self.maximize else value < self.best)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._save(trainer, module, "last")

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, name: str) -> None:
        now = module.counters.batches_seen
        if name == "last" and self._saved == (now, self._validated_at):
            return
        _refuse_ruined_weights(module)
        if hasattr(module, "measure_latents") and self._measured_at != now:
            module.measure_latents()
            self._measured_at = now
        trainer.save_checkpoint(self.folder / name)
        if name == "last":
            self._saved = (now, self._validated_at)

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        """Adds what the manifest shall know: progress, seconds of training, and these weights' validation values."""
        validated = self._validated_at == module.counters.batches_seen
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if validated and k.startswith("val/")}
        seconds = self._seconds_before + time.perf_counter() - self._began
        checkpoint["latentdiff"] = describe(module, trainer.world_size, {"seconds": round(seconds, 1), **values})

    def _agreed_signal(self, module: pl.LightningModule) -> int:
        if not (dist.is_available() and dist.is_initialized()):
            return self._signal
        flag = torch.tensor(self._signal, device=module.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag)


def _refuse_ruined_weights(module: pl.LightningModule) -> None:
    norms = torch._foreach_norm([p.detach() for p in module.parameters() if p.requires_grad])
    if not torch.isfinite(torch.stack(norms)).all():
        raise NonFiniteError(
            f"weights not finite at batch {module.counters.batches_seen}: the checkpoint is not written. Resume from "
            "the last one with a lower optim.lr, or trainer.precision=32-true"
        )
