"""The nearest training images of an evaluation's first samples, by the features of its own metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from latentdiff.data.datamodule import DataModule
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import index_chunks
from latentdiff.evaluation.neighbours import Neighbours, nearest
from latentdiff.metrics.features.base import POOL, Features
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.types import Metric

BLOCK = 50
"""Training images at a time."""


def neighbours_of(
    folder: ChunkFolder,
    data: DataModule,
    metrics: Mapping[str, Metric],
    device: torch.device,
    *,
    samples: int,
    among: int,
) -> Neighbours | None:
    """Of the first ``samples`` images of the folder, in the layer "pool" of the first metric that took it.

    The samples' features come from the folder's rows; those of ``among`` training images, spread over the set, are
    taken here, by one process. None where no metric took the layer, or ``samples`` or ``among`` is 0.
    """
    for name, metric in metrics.items():
        if samples and among and isinstance(metric, OnFeatures):
            column = f"{name}/{POOL}"
            own = _first_rows(folder, column, samples)
            if own is not None:
                return nearest(own, _seen(metric.features, data, device, among), metric.features.name)
    return None


def _first_rows(folder: ChunkFolder, column: str, count: int) -> Tensor | None:
    parts: list[Tensor] = []
    for chunk in folder.chunks:
        if sum(map(len, parts)) >= count:
            break
        part = folder.read(chunk, column)
        if part is None:
            return None
        parts.append(part)
    return torch.cat(parts)[:count]


def _seen(features: Features, data: DataModule, device: torch.device, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    training = data.training_ranges(count)
    for batch in training.in_order(index_chunks(len(training), BLOCK)):
        images = batch.image.to(device)
        yield features.to(device)(images, batch, [POOL])[POOL], images
