"""What a run was started with, to the loggers that take it."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from latentdiff.evaluation.card import environment
from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.run_loggers import TakesConfig, that_take


class RunConfig(Callback):
    """Hands on the configuration, and versions, source revision and hardware. To stand after ``MetricsLog``.

    Args:
        config: resolved.
    """

    def __init__(self, *, config: Mapping[str, object]):
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        takers = that_take(trainer, TakesConfig) if trainer.is_global_zero else []
        if not takers:
            return
        found = environment(trainer.world_size, module.device.type)
        for taker in takers:
            with not_fatal(type(taker).__name__):
                taker.log_config(self.config, found)
