"""Validation after the last batch, wherever the interval stands: every run ends with a ``best`` to choose."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class ValidateLast(Callback):
    """Makes Lightning validate once more when the last batch is not on the interval."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_index) -> None:
        if trainer.is_last_batch:
            trainer.val_check_batch = 1
