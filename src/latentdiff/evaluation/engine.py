"""Indices -> images -> metrics. How the indices are shared out over ranks changes no image and no result.

Image i has the condition of sample i of the evaluation set and the seed ``image_seed(seed, i)``. The indices are cut
into chunks of ``batch_size``; rank r makes chunks r, r + world_size, ... and each metric joins its rows by index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Batch, Metric

Generate = Callable[[Batch, list[int]], Tensor]
"""(batch, seeds) -> uint8 (B, 3, H, W): a ``LatentPipeline``, a ``Reconstruction`` or one of ``baselines``."""

Samples = Callable[[range], Batch]
"""Indices, consecutive -> those samples of the evaluation set."""


@runtime_checkable
class ComparesWithReal(Protocol):
    """A metric that needs real images beside the generated ones."""

    def update_reference(self, images: Tensor, batch: Batch) -> None: ...


@runtime_checkable
class ComparesWithReconstructions(Protocol):
    """A metric that holds what was generated beside what stage one alone makes of the samples' own images."""

    def update_reconstructions(self, images: Tensor, batch: Batch) -> None: ...


def evaluate(
    generate: Generate,
    samples: Samples,
    metrics: Mapping[str, Metric],
    *,
    num_images: int,
    batch_size: int,
    seed: int = 0,
    reference: Samples | None = None,
    num_reference: int = 0,
    measure_real: bool = True,
    reconstruct: Generate | None = None,
    rank: int = 0,
    world_size: int = 1,
    on_images: Callable[[Tensor, Batch], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict]:
    """The metrics' results by name, the same on every rank.

    Args:
        samples: conditions of the images; must hold ``num_images``.
        batch_size: size of the chunks; part of the protocol, since a GPU rounds differently for another one.
        reference: the real images for metrics that compare with such, None: those of ``samples``.
        num_reference: real images, 0: as many as are generated.
        measure_real: False: the metrics share real images that were measured before (``FrechetDistance.anew``).
        reconstruct: stage one alone, for metrics that compare with it; None: they go without.
        on_images, progress: called after each chunk on the rank that made it, ``progress`` with the number of images.

    Raises:
        InputError: fewer than one image, or the samples do not hold what was asked for.
    """
    if num_images < 1 or batch_size < 1:
        raise InputError(f"num_images and batch_size must be at least 1; got {num_images} and {batch_size}")
    device = torch.device("cpu")
    for chunk in index_chunks(num_images, batch_size, rank, world_size):
        batch = _placed(samples(chunk), chunk, num_images)
        seeds = [image_seed(seed, i) for i in chunk]
        images = generate(batch, seeds)
        device = images.device
        _measure(metrics.values(), images, batch, seeds, reconstruct)
        if on_images is not None:
            on_images(images, batch)
        if progress is not None:
            progress(len(chunk))
    comparing = [metric for metric in metrics.values() if isinstance(metric, ComparesWithReal)]
    if comparing and measure_real:
        count = num_reference or num_images
        chunks = index_chunks(count, batch_size, rank, world_size)
        _measure_reference(comparing, reference or samples, chunks, count, device)
    return {name: metric.compute() for name, metric in metrics.items()}


def index_chunks(total: int, size: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """This rank's chunks of ``range(total)``, round robin; only the very last one may be short. Nothing is padded."""
    chunks = [range(start, min(start + size, total)) for start in range(0, total, size)]
    return chunks[rank::world_size]


def image_seed(seed: int, index: int) -> int:
    """Distinct for all (seed, index < 2^32). With seed 0 it is the index: sample.py with that seed repeats it."""
    return (seed << 32) + index


class LoadedSamples:
    """Random access, forwards, to batches that deliver the evaluation set in order (the whole of it, on every rank).

    Args:
        batches: of any sizes; iterating starts at sample 0 each time.
    """

    def __init__(self, batches: Iterable[Batch]):
        self._batches = batches
        self._rewind()

    def __call__(self, indices: range) -> Batch:
        """Raises InputError when the set ends before the last index."""
        if indices.start < self._start:
            self._rewind()
        while self._start + len(self._rows) < indices.stop:
            batch = next(self._iterator, None)
            if batch is None:
                available = self._start + len(self._rows)
                raise InputError(
                    f"the evaluation set has {available} samples, but {indices.stop} or more are wanted; "
                    f"lower num_images (or num_reference) to {available} or give more data"
                )
            self._rows += [_row(batch, i) for i in range(len(batch))]
            surplus = max(0, min(indices.start - self._start, len(self._rows)))
            self._rows, self._start = self._rows[surplus:], self._start + surplus
        return _joined(self._rows[indices.start - self._start : indices.stop - self._start])

    def _rewind(self) -> None:
        self._iterator: Iterator[Batch] = iter(self._batches)
        self._rows: list[Batch] = []
        self._start = 0


def _measure(
    metrics: Iterable[Metric], images: Tensor, batch: Batch, seeds: list[int], reconstruct: Generate | None
) -> None:
    rebuilt: Tensor | None = None
    for metric in metrics:
        metric.update(images, batch)
        if reconstruct is not None and isinstance(metric, ComparesWithReconstructions):
            rebuilt = reconstruct(batch, seeds) if rebuilt is None else rebuilt
            metric.update_reconstructions(rebuilt, batch)


def _measure_reference(
    metrics: list[ComparesWithReal], samples: Samples, chunks: list[range], total: int, device: torch.device
) -> None:
    for chunk in chunks:
        batch = _placed(samples(chunk), chunk, total)
        if batch.image is None:
            raise InputError("a metric compares with real images, the reference samples have none")
        for metric in metrics:
            metric.update_reference(batch.image.to(device), batch)


def _placed(batch: Batch, chunk: range, total: int) -> Batch:
    """The batch as a part of one global batch that is the whole evaluation, so that ``start`` is the index."""
    if len(batch) != len(chunk):
        raise InputError(f"samples {chunk.start} to {chunk.stop} were asked for, {len(batch)} came; lower num_images")
    return replace(batch, number=0, start=chunk.start, total=total)


def _row(batch: Batch, i: int) -> Batch:
    columns = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    return Batch(**{k: v[i : i + 1] for k, v in columns.items() if isinstance(v, (list, Tensor))})


def _joined(rows: list[Batch]) -> Batch:
    values: dict = {}
    for f in fields(Batch):
        parts = [getattr(row, f.name) for row in rows]
        if isinstance(parts[0], Tensor):
            values[f.name] = torch.cat(parts)
        elif isinstance(parts[0], list):
            values[f.name] = [item for part in parts for item in part]
    return Batch(**values)
