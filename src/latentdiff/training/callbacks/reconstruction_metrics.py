"""What validation of stage one measures beside the module's own PSNR, on the first images of the set."""

from __future__ import annotations

from dataclasses import replace

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import Features
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.lpips import Lpips
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.reconstruction import Ssim
from latentdiff.metrics.reference import Reference
from latentdiff.metrics.rows import Part, gathered
from latentdiff.models.perceptual import LPIPS
from latentdiff.types import Batch, Metric

FRECHET, ORIGINALS = "frechet", "originals"


class ReconstructionMetrics(Callback):
    """Logs ``val/ssim``, the Fréchet distance of reconstructions under the name that ``evaluate.py`` gives it, and
    ``val/lpips`` where the loss has an LPIPS network: no other is loaded for it.

    Reads what the module's ``validation_step`` returns: the reconstructions, uint8 (B, 3, H, W). All ranks together
    measure the same images as one would. The originals' features are taken at the first validation alone: they are
    always the same images.

    Args:
        features: of the Fréchet distance; cheap ones, since this is done at every validation.
        images: how many, at most; a hundred or two show a trend, ``evaluate.py`` measures the whole set.
    """

    def __init__(self, *, features: Features, images: int = 128):
        if images < 2:
            raise InputError(f"images: a Fréchet distance needs at least 2, got {images}")
        self.images = images
        self._frechet = OnFeatures(features=features, measures=[FrechetDistance()]).of_reconstructions()
        self._originals: Reference | None = None
        self._metrics: dict[str, Metric] = {}
        self._parts: dict[str, list[Part]] = {}
        self._offset = 0
        """Images of all ranks before this batch."""

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        found = len(trainer.datamodule.val_set)
        if found < 2:
            raise InputError(f"data.val: validation of stage one needs at least 2 images, there are {found}")

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._offset = 0
        network = next((part for part in module.modules() if isinstance(part, LPIPS)), None)
        self._metrics = {"ssim": Ssim(), FRECHET: self._frechet}
        if network is not None:
            self._metrics["lpips"] = Lpips(network=network)
        self._parts = {name: [] for name in (*self._metrics, ORIGINALS)}

    def on_validation_batch_end(
        self, trainer, module, outputs: Tensor, batch: Batch, batch_index: int, dataloader_index: int = 0
    ) -> None:
        start = self._offset + batch.start
        self._offset += batch.global_size
        count = min(len(batch), self.images - start)
        if count <= 0:
            return
        images, originals = outputs[:count], batch.image[:count]
        kept = replace(batch, keys=batch.keys[:count], image=originals, start=start, total=None)
        for name, metric in self._metrics.items():
            self._parts[name].append((start, metric.measure(images, kept)))
        if self._originals is None:
            self._parts[ORIGINALS].append((start, self._frechet.measure_real(originals, kept)))

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._originals is None:
            self._originals = self._frechet.reference(gathered(self._parts[ORIGINALS]))
        found: dict[str, object] = {}
        for name, metric in self._metrics.items():
            rows = gathered(self._parts[name])
            found |= metric.result(rows, self._originals) if name == FRECHET else metric.result(rows)
        self._parts = {}
        module.log_dict({f"val/{name}": value for name, value in found.items()}, logger=False, sync_dist=True)
