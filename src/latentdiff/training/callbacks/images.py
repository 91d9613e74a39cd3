"""Pictures while training: reconstructions of stage one, samples of stage two beside what they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from latentdiff.evaluation.grid import COMPARISON, comparison, save_grid
from latentdiff.evaluation.inputs import beside_inputs, condition_texts
from latentdiff.generation.pipeline import to_uint8
from latentdiff.training.callbacks.at_least import at_least_one
from latentdiff.training.callbacks.averaged_images import AbandonedError, averaged_pipeline, giving_way
from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.parallel import is_sharded
from latentdiff.types import Batch, Guidance, Sampler


class ReconstructionGrid(Callback):
    """Validation images, their reconstructions by the averaged weights and the differences, in ``reconstructions/``.

    Args:
        run_dir: holds the folder.
        every: batches between grids; one is also made at the end.
        count: images in the grid.
    """

    def __init__(self, *, run_dir: str, every: int = 1000, count: int = 8):
        self.folder = Path(run_dir) / "reconstructions"
        self.every = at_least_one("reconstructions.every", every)
        self.count = at_least_one("reconstructions.count", count)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if module.counters.batches_seen % self.every == 0:
            self._draw(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.counters.batches_seen % self.every:
            self._draw(trainer, module)

    @torch.no_grad()  # and not inference mode, in which nothing can be gathered
    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not (trainer.is_global_zero or is_sharded(module)):
            return
        batch = trainer.datamodule.preview(self.count)
        image = batch.image.to(module.device)
        mean = module.ema.model.encode(image.float() / 127.5 - 1.0).mean
        cells = comparison(image, to_uint8(module.ema.model.decode(mean)), len(batch))
        if not trainer.is_global_zero:
            return
        path = self.folder / f"batch-{module.counters.batches_seen:08d}.png"
        with not_fatal(path):
            save_grid(path, cells, columns=len(batch), scale=2, text=COMPARISON)
            log_image(trainer, "reconstructions", path, module.counters.batches_seen)


class SampleGrid(Callback):
    """Images for the first validation samples, always the same samples and seeds, in ``samples/``.

    A run that has been told to stop makes none: it has to save in time.

    Right of its masked image, its map or its small image, and above its caption or class, where the data make these.

    Args:
        run_dir: holds the folder.
        sampler, grid, steps, guidance: how they are made (see ``generation.pipeline``).
        every: batches between grids; one is also made at the end.
        count: images in the grid.
        seed: image i has seed ``seed + i``.
        captions, labels: which of the two the model reads, and the grid shows.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        sampler: Sampler,
        grid: Callable[..., Tensor],
        steps: int,
        guidance: Guidance,
        every: int = 5000,
        count: int = 16,
        seed: int = 0,
        captions: bool = True,
        labels: bool = False,
    ):
        self.folder = Path(run_dir) / "samples"
        self.sampler, self.grid, self.steps, self.guidance = sampler, grid, steps, guidance
        self.every = at_least_one("samples.every", every)
        self.count, self.seed = at_least_one("samples.count", count), seed
        self.captions, self.labels = captions, labels

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if module.counters.batches_seen % self.every == 0:
            self._draw(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.counters.batches_seen % self.every:
            self._draw(trainer, module)

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not (trainer.is_global_zero or is_sharded(module)):
            return
        batch: Batch = trainer.datamodule.preview(self.count)
        pipeline = averaged_pipeline(
            module,
            sampler=self.sampler,
            grid=self.grid,
            steps=self.steps,
            guidance=self.guidance,
            image_size=_side(batch, module.codec.factor),
        )
        try:
            latents = pipeline.latents(batch, [self.seed + i for i in range(len(batch))], giving_way(trainer, module))
        except AbandonedError:
            return
        if not trainer.is_global_zero:
            return
        images = pipeline.decode(latents, batch)
        path = self.folder / f"batch-{module.counters.batches_seen:08d}.png"
        names = getattr(trainer.datamodule, "class_names", None)
        texts = condition_texts(batch, captions=self.captions, labels=self.labels, class_names=names)
        cells, under, group = beside_inputs(images, batch, texts)
        with not_fatal(path):
            save_grid(path, cells, captions=under, columns=group * max(1, 4 // group), scale=2)
            log_image(trainer, "samples", path, module.counters.batches_seen)


def _side(batch: Batch, factor: int) -> int:
    """Pixels of a side of the samples' images, also where the batch has their latents alone."""
    return batch.latent_mean.shape[-1] * factor if batch.image is None else batch.image.shape[-1]


def log_image(trainer: pl.Trainer, name: str, path: Path, step: int) -> None:
    """Hands a PNG to every logger that takes images (W&B does)."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(name, [str(path)], step=step)
