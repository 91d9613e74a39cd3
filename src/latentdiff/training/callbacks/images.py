"""Pictures while training: reconstructions of stage one, samples of stage two beside what they were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.evaluation.grid import COMPARISON, comparison, save_grid
from latentdiff.evaluation.inputs import beside_inputs, condition_texts
from latentdiff.generation.pipeline import to_uint8
from latentdiff.training.callbacks.at_least import at_least_one
from latentdiff.training.callbacks.averaged_images import AbandonedError, averaged_pipeline, giving_way
from latentdiff.training.callbacks.image_scores import ImageScores
from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.parallel import is_sharded
from latentdiff.training.run_loggers import TakesPictures, TakesTables, that_take
from latentdiff.types import Batch, Guidance, Metric, Sampler


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
            log_picture(trainer, "reconstructions", path, module)


class SampleGrid(Callback):
    """Images for the first validation samples or for prompts, always the same and with the same seeds, in ``samples/``.

    A run that has been told to stop makes none: it has to save in time.

    Right of its masked image, its map or its small image, and above its caption or class, where the data make these.
    Loggers that take tables have one row per image too: prompt (or class), seed, guidance, steps, image, and its
    ``scores``.

    Args:
        run_dir: holds the folder.
        sampler, grid, steps, guidance: how they are made (see ``generation.pipeline``).
        every: batches between grids; one is also made at the end.
        count: images in the grid, where there are no ``prompts``.
        seed: image i has seed ``seed + i``.
        captions, labels: which of the two the model reads, and the grid shows.
        prompts: captions in the place of those of as many validation samples, whose other conditions stay.
        scores: metrics for the table, see ``ImageScores``.
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
        prompts: Sequence[str] = (),
        scores: Mapping[str, Metric] | None = None,
    ):
        self.folder = Path(run_dir) / "samples"
        self.sampler, self.grid, self.steps, self.guidance = sampler, grid, steps, guidance
        self.every = at_least_one("samples.every", every)
        self.count, self.seed = at_least_one("samples.count", count), seed
        self.captions, self.labels, self.prompts = captions, labels, list(prompts)
        self.scores = ImageScores(scores or {})
        if self.prompts and not captions:
            raise InputError("callbacks.samples.prompts: this model reads no captions; leave them out")

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Raises InputError for what the first grid would find out."""
        if self.prompts or self.scores.metrics:
            self.scores.check(self._samples(trainer))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if module.counters.batches_seen % self.every == 0:
            self._draw(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.counters.batches_seen % self.every:
            self._draw(trainer, module)

    def _samples(self, trainer: pl.Trainer) -> Batch:
        if not self.prompts:
            return trainer.datamodule.preview(self.count)
        batch = trainer.datamodule.preview(len(self.prompts))
        if len(batch) < len(self.prompts):
            raise InputError(
                f"callbacks.samples.prompts: {len(self.prompts)} are given, there are {len(batch)} validation samples"
            )
        if batch.text_tokens is not None:
            raise InputError("callbacks.samples.prompts: cached text has no encoder at hand; leave them out")
        return replace(batch, caption=self.prompts, attributes=None)

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not (trainer.is_global_zero or is_sharded(module)):
            return
        batch = self._samples(trainer)
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
            log_picture(trainer, "samples", path, module)
        if takers := that_take(trainer, TakesTables):
            columns, rows = self._table(images, batch, texts)
            for taker in takers:
                taker.log_table("samples_table", columns, rows, module.counters.as_dict())

    def _table(self, images: Tensor, batch: Batch, texts: list[str] | None) -> tuple[list[str], list[list]]:
        scores = self.scores(images, batch)
        names = list(dict.fromkeys(name for one in scores for name in one))
        strength = getattr(self.guidance, "scale", None)
        if strength is None:  # several, or none
            strength = str(getattr(self.guidance, "scales", type(self.guidance).__name__))
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        rows = [
            [text, self.seed + i, strength, self.steps, Image.fromarray(pixels[i]), *map(scores[i].get, names)]
            for i, text in enumerate(texts or [""] * len(batch))
        ]
        return ["prompt", "seed", "guidance", "steps", "image", *names], rows


def _side(batch: Batch, factor: int) -> int:
    """Pixels of a side of the samples' images, also where the batch has their latents alone."""
    return batch.latent_mean.shape[-1] * factor if batch.image is None else batch.image.shape[-1]


def log_picture(trainer: pl.Trainer, name: str, path: Path, module: pl.LightningModule) -> None:
    """Hands a PNG to every logger that takes pictures."""
    for logger in that_take(trainer, TakesPictures):
        logger.log_picture(name, path, module.counters.as_dict())
