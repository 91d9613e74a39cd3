"""Writes ``checkpoints/last`` and ``checkpoints/best``, keeps older ones, and bears with a disk that refuses."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from latentdiff import durable
from latentdiff.checkpoint import shelf, store
from latentdiff.checkpoint.space import free_bytes, readable, tensor_bytes
from latentdiff.checkpoint.store import BEST, LAST
from latentdiff.config.errors import InputError, RunError
from latentdiff.training.callbacks.at_least import at_least_one
from latentdiff.training.callbacks.metrics_log import NonFiniteError
from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO, describe
from latentdiff.training.counters import refuse_different_starts
from latentdiff.training.parallel import total_norm

_log = logging.getLogger(__name__)

FAILURES = 3
"""Saves in a row that may fail before the run ends."""

ROOM = 2.5
"""Checkpoints that the disk should have room for when training starts: the one that is written, the one that it
replaces, and half of one for everything else."""


class SaveError(RunError):
    """The state of the run could not be saved, and going on would lose it."""


class Checkpoints(Callback):
    """Saves every ``every`` batches, at the end, and after a better validation.

    Weights that are not finite are never saved. A save that the disk refuses costs a message; the third in a row, and
    one at the end or at a stop, ends the run with SaveError on all ranks. What stood before stands.

    Args:
        run_dir: holds ``checkpoints/``.
        every: batches between saves of ``last``.
        keep: checkpoints beside ``best``: ``last``, and ``batch-*``, what was ``last`` before.
        monitor: logged value that decides ``best``, or None.
        maximize: whether more is better.
    """

    def __init__(
        self, *, run_dir: str, every: int = 1000, keep: int = 2, monitor: str | None = None, maximize: bool = False
    ):
        self.folder = Path(run_dir) / "checkpoints"
        self.every, self.keep = at_least_one("checkpoints.every", every), at_least_one("checkpoints.keep", keep)
        self.monitor, self.maximize = monitor, maximize
        self.best: float | None = None
        self._failures = 0
        """Saves that failed since the last that did not."""
        self._saved: tuple[int, int] | None = None
        """Batches seen when ``last`` was saved, and at the validation before it."""
        self._validated_at = self._measured_at = -1
        self._seconds_before = 0.0
        self._began = 0.0

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Before any rank loads anything: Lightning would go on with different states, or hang."""
        refuse_different_starts(trainer.datamodule.start_batch)

    def on_load_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        self._seconds_before = checkpoint["latentdiff"]["extra"].get("seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        if trainer.is_global_zero:
            durable.tidy(self.folder)
            self.best = self._best_so_far(trainer.strategy.checkpoint_io)
            self._look_for_room(trainer, module)
        self.best = trainer.strategy.broadcast(self.best)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if module.counters.batches_seen % self.every == 0:
            self._save(trainer, module, LAST)

    def save_now(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Saves ``last``, unless it stands already for this batch; to be called on all ranks. Raises SaveError."""
        self._save(trainer, module, LAST, must=True)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validated_at = module.counters.batches_seen
        if self.monitor is not None and self._is_better(value := self._monitored(trainer)):
            self.best = value if self._save(trainer, module, BEST) else self.best

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
        self.save_now(trainer, module)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, name: str, *, must: bool = False) -> bool:
        """Whether it stands, agreed over the ranks; one that ``must`` stand ends the run where it does not."""
        now = (module.counters.batches_seen, self._validated_at)
        if name == LAST and self._saved == now:
            return True
        _refuse_ruined_weights(module)
        if hasattr(module, "measure_latents") and self._measured_at != now[0]:
            module.measure_latents()
            self._measured_at = now[0]
        if trainer.is_global_zero and self._saved and not (self.folder / LAST).exists():
            _log.warning("'%s' of batch %d is gone: something else removed it", self.folder / LAST, self._saved[0])
        trainer.save_checkpoint(self.folder / name)
        failure = trainer.strategy.broadcast(trainer.strategy.checkpoint_io.failure)
        if failure is not None:
            self._bear(trainer, f"batch {now[0]}: '{name}' not saved: {failure}", must)
            return False
        self._failures = 0
        if name == LAST:
            self._saved = now
            if trainer.is_global_zero:
                with not_fatal(self.folder):
                    shelf.prune(self.folder, self.keep)
        return True

    def _bear(self, trainer: pl.Trainer, message: str, must: bool) -> None:
        self._failures += 1
        standing = f"checkpoint of batch {self._saved[0]}" if self._saved else "checkpoint before it, if there was one,"
        message = f"{message}. The {standing} still stands"
        if must or self._failures >= FAILURES:
            raise SaveError(f"{message}; the run ends here, start it again when there is room")
        if trainer.is_global_zero:
            _log.warning("%s; training goes on (%d in a row failed, %d end the run)", message, self._failures, FAILURES)

    def _best_so_far(self, files: DirectoryCheckpointIO) -> float | None:
        """What a validation has to beat: the value of a ``best`` that is whole and was trained on the same samples."""
        best = self.folder / BEST
        if self.monitor is None or not best.exists():
            return None
        try:
            manifest = store.verify(best)
        except InputError as error:
            _log.warning("%s; the next validation replaces it", error)
            return None
        if _samples(manifest.data) != _samples(files.data):
            _log.warning("'%s' is of other training samples; the next validation replaces it", best)
            return None
        return manifest.extra.get(self.monitor)

    def _look_for_room(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Warns of a disk that is almost full; Adam's two moments are counted before they are there."""
        moments = 2 * sum(tensor_bytes(p) for p in module.parameters() if p.requires_grad)
        size, free = tensor_bytes(module.state_dict()) + moments, free_bytes(self.folder)
        if free < ROOM * size:
            _log.warning(
                "disk almost full: a checkpoint takes about %s, and %s are free at '%s'; make room for %s",
                *(readable(size), readable(free), self.folder, readable(ROOM * size)),
            )

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        """Adds what the manifest shall know: progress, seconds of training, and these weights' validation values."""
        validated = self._validated_at == module.counters.batches_seen
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if validated and k.startswith("val/")}
        seconds = self._seconds_before + time.perf_counter() - self._began
        checkpoint["latentdiff"] = describe(module, trainer.world_size, {"seconds": round(seconds, 1), **values})


def _samples(data: dict | None) -> str | None:
    return None if data is None else data["fingerprint"]


def _refuse_ruined_weights(module: pl.LightningModule) -> None:
    if not torch.isfinite(total_norm(p for p in module.parameters() if p.requires_grad)):
        raise NonFiniteError(
            f"weights not finite at batch {module.counters.batches_seen}: the checkpoint is not written. Resume from "
            "the last one with a lower optim.lr, or trainer.precision=32-true"
        )
