"""The run's checkpoints to the loggers that take them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from latentdiff.checkpoint import store
from latentdiff.checkpoint.manifest import Manifest
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.run_loggers import TakesCheckpoints, that_take

_log = logging.getLogger(__name__)


class CheckpointArtifacts(Callback):
    """When training ends or is stopped, hands on ``last`` and ``best``, one that is both once. To stand after
    ``Checkpoints``.

    Args:
        run_dir: holds ``checkpoints/``.
    """

    def __init__(self, *, run_dir: str):
        self.folder = Path(run_dir) / "checkpoints"

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._hand_on(trainer)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._hand_on(trainer)

    def _hand_on(self, trainer: pl.Trainer) -> None:
        takers = that_take(trainer, TakesCheckpoints) if trainer.is_global_zero else []
        found = self._standing() if takers else {}
        for digest in {manifest.digest: None for manifest in found.values()}:
            names = [name for name, manifest in found.items() if manifest.digest == digest]
            manifest = found[names[0]]
            about = {"digest": digest, "kind": manifest.kind, **manifest.counters, **manifest.extra}
            for taker in takers:
                with not_fatal(self.folder / names[0]):
                    taker.log_checkpoint(self.folder / names[0], names, about)

    def _standing(self) -> dict[str, Manifest]:
        found = {}
        for name in (store.LAST, store.BEST):
            try:
                if (self.folder / name).exists():
                    found[name] = store.read_manifest(self.folder / name)
            except InputError as error:
                _log.warning("not handed on: %s", error)
        return found
