"""Validations that Lightning would leave out: after the last batch, and one that a stop came before."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class ValidateLast(Callback):
    """Validates after the last batch, wherever the interval stands: every run ends with a ``best`` to choose.

    A resumed run first makes up for the validation that was due at its checkpoint, which was written before it. Where
    ``total`` batches have been seen, that is all it does.
    """

    def __init__(self, *, total: int) -> None:
        self.total = total
        self._missed = False

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        self._missed = not was_validated(checkpoint["latentdiff"]["extra"])

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        seen = module.counters.batches_seen
        due = seen == self.total or seen % trainer.val_check_batch == 0
        if self._missed and trainer.enable_validation and due:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        self._missed = False
        trainer.should_stop |= seen == self.total

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_index) -> None:
        if trainer.is_last_batch:
            trainer.val_check_batch = 1


def was_validated(extra: Mapping[str, object]) -> bool:
    """Whether the checkpoint with this ``extra`` in its manifest was written after its weights' validation."""
    return any(name.startswith("val/") for name in extra)
