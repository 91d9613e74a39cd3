"""What validation of stage one measures beside the module's own PSNR, on the first images of the set."""

from __future__ import annotations

from dataclasses import replace

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.features import Features
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.lpips import Lpips
from latentdiff.metrics.paired import Paired
from latentdiff.metrics.reconstruction import Ssim
from latentdiff.models.perceptual import LPIPS
from latentdiff.types import Batch


class ReconstructionMetrics(Callback):
    """Logs ``val/ssim``, the Fréchet distance of reconstructions as ``val/fd_<features>_n<images>``, and ``val/lpips``
    where the loss has an LPIPS network: no other is loaded for it.

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
        self._frechet = FrechetDistance(features=features).of_reconstructions()
        self._knows_originals = False
        self._paired: list[Paired] = []
        self._offset = 0
        """Images of all ranks before this batch."""

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        found = len(trainer.datamodule.val_set)
        if found < 2:
            raise InputError(f"data.val: validation of stage one needs at least 2 images, there are {found}")

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._offset = 0
        self._frechet = self._frechet.anew()
        network = next((part for part in module.modules() if isinstance(part, LPIPS)), None)
        self._paired = [Ssim()] if network is None else [Ssim(), Lpips(network=network)]

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
        for metric in (*self._paired, self._frechet):
            metric.update(images, kept)
        if not self._knows_originals:
            self._frechet.update_reference(originals, kept)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        results = [metric.compute() for metric in (*self._paired, self._frechet)]
        self._knows_originals, self._paired = True, []
        values = {f"val/{name}": value for found in results for name, value in found.items()}
        module.log_dict(values, logger=False, sync_dist=True)
