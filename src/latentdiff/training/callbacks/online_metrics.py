"""Metrics of generated images while training: few images, cheap to repeat, to watch a run by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.evaluation.curve import numbers_of
from latentdiff.evaluation.engine import ComparesWithReal, Measure, Work, image_seed, results_of
from latentdiff.metrics.on_features import OnFeatures, check_distinct
from latentdiff.metrics.paired import check_unpaired
from latentdiff.metrics.reference import Reference
from latentdiff.metrics.rows import JoinedRows, gathered
from latentdiff.training.callbacks.averaged_images import AbandonedError, averaged_pipeline, giving_way
from latentdiff.training.callbacks.interruption import stop_pending
from latentdiff.training.callbacks.metrics_log import MetricsLog
from latentdiff.training.callbacks.watchdog import Watchdog
from latentdiff.types import Batch, Guidance, Metric, Sampler

PREFIX = "online/"


class OnlineMetrics(Callback):
    """Every ``every`` batches measures images that the averaged weights make for the first validation samples.

    Always the same samples and seeds. The ranks share the chunks, all results are the same for any number of them. No
    draw of training changes. Numbers are named after thousands of images, ``online/fid_1k``: by so few the bias of a
    Fréchet distance is large, and ``fid`` alone is the name of one by 10,000 or more. They have a line of their own in
    ``metrics.jsonl``, which ``MetricsLog`` writes. The real images' features are taken once.

    A run that has been told to stop gives the measurement up; resumed, it first makes up for one that is missing at
    its checkpoint's batch.

    Args:
        metrics: by name.
        sampler, grid, steps, guidance: how images are made (see ``generation.pipeline``).
        every: batches between measurements; 0: none.
        images: validation samples that one is made for.
        batch_size: images at a time; part of the protocol.
        seed: image i has the seed ``engine.image_seed(seed, i)``.
    """

    def __init__(
        self,
        *,
        metrics: Mapping[str, Metric],
        sampler: Sampler,
        grid: Callable[..., Tensor],
        steps: int,
        guidance: Guidance,
        every: int = 0,
        images: int = 1000,
        batch_size: int = 50,
        seed: int = 0,
    ):
        if every < 0 or images < 1 or batch_size < 1:
            raise InputError(
                "callbacks.online: expected every of at least 0 (0 = never), images and batch_size of at least 1; got "
                f"{every}, {images} and {batch_size}"
            )
        self.metrics, self.every = metrics, every
        self.sampler, self.grid, self.steps, self.guidance = sampler, grid, steps, guidance
        self.work = Work(images, batch_size, seed)
        self._references: dict[str, Reference] | None = None

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Raises InputError for what the first measurement would find out."""
        if not self.every:
            return
        data, count = trainer.datamodule, self.work.count
        if count > len(data.val_set):
            raise InputError(
                f"callbacks.online.images: {count} are wanted, there are {len(data.val_set)} validation samples"
            )
        if _log(trainer) is None:
            raise InputError("callbacks.online writes its numbers through callbacks.log, which is left out; keep both")
        if _comparing(self.metrics) and data.preview(1).image is None:
            raise InputError(
                "callbacks.online: cached latents have no images to compare with; choose metrics that need none, or "
                "train on the images themselves"
            )
        check_unpaired(self.metrics)
        check_distinct(self.metrics, count)
        for metric in self.metrics.values():
            if isinstance(metric, OnFeatures):
                metric.check_count(count)
            if hasattr(metric, "check"):
                metric.check(data.preview(1))

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._due(module):
            known = _log(trainer).holds(PREFIX, module.counters.batches_seen)
            if not trainer.strategy.broadcast(known):
                self._measure(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if self._due(module):
            self._measure(trainer, module)

    def _due(self, module: pl.LightningModule) -> bool:
        seen = module.counters.batches_seen
        return self.every > 0 and seen > 0 and seen % self.every == 0

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        comparing = _comparing(self.metrics)
        if self._references is None:
            real = {name: metric.measure_real for name, metric in comparing.items()}
            rows = self._rows(trainer, module, lambda batch: batch.image.to(module.device), real)
            if rows is None:
                return
            self._references = {name: metric.reference(rows[name]) for name, metric in comparing.items()}
        measures = {name: metric.measure for name, metric in self.metrics.items()}
        rows = self._rows(trainer, module, self._generator(trainer, module), measures)
        if rows is not None:
            _log(trainer).record(trainer, module, self._results(rows))

    def _generator(self, trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Batch], Tensor]:
        def generate(batch: Batch) -> Tensor:
            pipeline = averaged_pipeline(
                module,
                sampler=self.sampler,
                grid=self.grid,
                steps=self.steps,
                guidance=self.guidance,
                image_size=trainer.datamodule.image_size,
            )
            seeds = [image_seed(self.work.seed, batch.start + i) for i in range(len(batch))]
            return pipeline.decode(pipeline.latents(batch, seeds, giving_way(trainer, module)), batch)

        return generate

    def _rows(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        images_for: Callable[[Batch], Tensor],
        measures: Mapping[str, Measure],
    ) -> dict[str, JoinedRows] | None:
        """Rows of all images by the metrics' names, the same on all ranks; None on all where one is to stop.

        Every rank makes the same number of chunks, since sharded networks are run together: those left over once more.
        """
        chunks, ranks = self.work.chunks, trainer.world_size
        samples = trainer.datamodule.ranges_of(trainer.datamodule.val_set, with_conditions=True)
        parts: dict[str, list] = {name: [] for name in measures}
        for first in range(0, len(chunks), ranks):
            if _stopping(trainer):
                return None
            number = first + trainer.global_rank
            chunk = chunks[min(number, len(chunks) - 1)]
            batch = replace(samples(chunk), number=0, start=chunk.start, total=self.work.count)
            try:
                images = images_for(batch)
            except AbandonedError:
                continue
            if number < len(chunks):
                for name, measure in measures.items():
                    parts[name].append((chunk.start, measure(images, batch)))
            _tell_watchdog(trainer)
        return None if _stopping(trainer) else {name: gathered(own) for name, own in parts.items()}

    def _results(self, rows: Mapping[str, JoinedRows]) -> dict[str, float]:
        return {
            PREFIX + self._name(name, self.metrics[name], number): float(value)
            for name, found in results_of(rows, self.metrics, self._references).items()
            for number, value in numbers_of(found).items()
        }

    def _name(self, name: str, metric: Metric, number: str) -> str:
        """``fd_inception_n1000`` -> ``fid_1k`` for the published features, ``fd_inception_1k`` for others; numbers of
        other metrics with their metric's name."""
        short = f"_{self.work.count / 1000:g}k"
        if not isinstance(metric, OnFeatures):
            return f"{name}.{number}{short}"
        number = number.removesuffix(f"_n{self.work.count}")
        if metric.features.published and number == f"fd_{metric.features.name}":
            number = "fid"
        return number + short


def _comparing(metrics: Mapping[str, Metric]) -> dict[str, ComparesWithReal]:
    return {n: m for n, m in metrics.items() if isinstance(m, ComparesWithReal) and m.needs_reference}


def _log(trainer: pl.Trainer) -> MetricsLog | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, MetricsLog)), None)


def _stopping(trainer: pl.Trainer) -> bool:
    """Whether any rank has been told to stop."""
    return trainer.strategy.reduce_boolean_decision(stop_pending(trainer), all=False)


def _tell_watchdog(trainer: pl.Trainer) -> None:
    for callback in trainer.callbacks:
        if isinstance(callback, Watchdog):
            callback.step("in a measurement")
