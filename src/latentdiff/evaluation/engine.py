"""Indices -> images -> metrics. How the indices are shared out over ranks changes no image and no result.

Image i has the condition of sample i of the evaluation set and the seed ``image_seed(seed, i)``. The indices are cut
into chunks; each process makes some of them and writes what the metrics measured into a folder that all share. The
results are computed from the folder's rows in the order of the indices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.metrics.reference import Reference
from latentdiff.types import Batch, Column, Metric, Rows

DIGEST = "sha256"
"""Column of every evaluation: of each image's bytes, channels first."""
REBUILT = "rebuilt."
"""Begins the names of columns of stage one's reconstructions."""

Generate = Callable[[Batch, list[int]], Tensor]
"""(batch, seeds) -> uint8 (B, 3, H, W): a ``LatentPipeline``, a ``Reconstruction`` or one of ``baselines``."""

Samples = Callable[[range], Batch]
"""Indices, consecutive -> those samples of the evaluation set."""


@runtime_checkable
class ReadsAhead(Protocol):
    """Samples that are read while others are in use, where it is told which come next."""

    def in_order(self, ranges: Sequence[range]) -> Iterable[Batch]: ...


@runtime_checkable
class ComparesWithReal(Protocol):
    """A metric that may need real images beside the generated ones (``metrics.on_features``)."""

    needs_reference: bool

    def measure_real(self, images: Tensor, batch: Batch) -> Mapping[str, Column]: ...
    def reference(self, rows: Rows) -> Reference: ...
    def result(self, rows: Rows, reference: Reference | None = None) -> dict[str, object]: ...


@runtime_checkable
class ComparesWithReconstructions(Protocol):
    """A metric that holds what was generated beside what stage one alone makes of the samples' own images.

    Its columns are those of ``measure`` and, named ``rebuilt.NAME``, those of ``measure_reconstructions``.
    """

    def measure_reconstructions(self, images: Tensor, batch: Batch) -> Mapping[str, Column]: ...


Measure = Callable[[Tensor, Batch], Mapping[str, Column]]
"""(images, what they were made for) -> columns."""


@dataclass(frozen=True)
class Work:
    """Which images are made: ``count`` in chunks of ``size``, the part of them that one of ``ranks`` processes makes.

    ``size`` is part of the protocol, since a network rounds differently for another batch.
    """

    count: int
    size: int
    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise InputError(f"num_images and batch_size must be at least 1; got {self.count} and {self.size}")

    @property
    def chunks(self) -> list[range]:
        """Of all processes."""
        return index_chunks(self.count, self.size)


def fill(
    folder: ChunkFolder,
    work: Work,
    generate: Generate,
    samples: Samples,
    measures: Mapping[str, Measure],
    *,
    pictures: int = 0,
    on_images: Callable[[Tensor, Batch], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Makes and measures this rank's share of the chunks that the folder does not have yet.

    Args:
        samples: conditions of the images; must hold ``work.count``.
        measures: by the name of a metric, which its columns' names begin with.
        pictures: images that are kept themselves, the first.
        on_images: called with each chunk before it counts as done.
        progress: called after each chunk with its number of images.

    Raises:
        InputError: the samples do not hold what was asked for.
    """
    wanted = [chunk for chunk in work.chunks[work.rank :: work.ranks] if not folder.has(chunk)]
    batches = samples.in_order(wanted) if isinstance(samples, ReadsAhead) else map(samples, wanted)
    for chunk, batch in zip(wanted, batches):
        batch = _placed(batch, chunk, work.count)
        images = generate(batch, [image_seed(work.seed, i) for i in chunk])
        columns: dict[str, Column] = {DIGEST: _digests(images)}
        for name, measure in measures.items():
            columns |= {f"{name}/{column}": values for column, values in measure(images, batch).items()}
        if on_images is not None:
            on_images(images, batch)
        folder.write(chunk, columns, images[: max(0, pictures - chunk.start)])
        if progress is not None:
            progress(len(chunk))


def measures_of(metrics: Mapping[str, Metric], reconstruct: Generate | None = None) -> dict[str, Measure]:
    """What ``fill`` measures for these metrics; ``reconstruct`` is stage one alone, for those that compare with it."""
    beside = {n: m for n, m in metrics.items() if reconstruct and isinstance(m, ComparesWithReconstructions)}
    return {name: metric.measure for name, metric in metrics.items()} | _with_rebuilt(beside, reconstruct)


def results(
    folder: ChunkFolder, metrics: Mapping[str, Metric], references: Mapping[str, Reference] | None = None
) -> dict[str, dict]:
    """The metrics' results by name, from the rows of all processes: every chunk must be there."""
    return results_of({name: folder.rows(f"{name}/") for name in metrics}, metrics, references or {})


def results_of(
    rows: Mapping[str, Rows], metrics: Mapping[str, Metric], references: Mapping[str, Reference]
) -> dict[str, dict]:
    """The same from each metric's rows."""
    found = {}
    for name, metric in metrics.items():
        if isinstance(metric, ComparesWithReal) and metric.needs_reference:
            found[name] = metric.result(rows[name], references.get(name))
        else:
            found[name] = metric.result(rows[name])
    return found


def index_chunks(total: int, size: int) -> list[range]:
    """``range(total)`` in parts; only the very last one may be short. Nothing is padded."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def image_seed(seed: int, index: int) -> int:
    """Distinct for all (seed, index < 2^32). With seed 0 it is the index: sample.py with that seed repeats it."""
    return (seed << 32) + index


def _with_rebuilt(metrics: Mapping[str, Metric], reconstruct: Generate | None) -> dict[str, Measure]:
    """``measure`` of these metrics, with the columns of stage one's images, which are made once for all of them."""
    last: list = [None, None]

    def rebuilt(batch: Batch) -> Tensor:
        if last[0] is not batch:
            last[:] = batch, reconstruct(batch, [0] * len(batch))
        return last[1]

    def both(metric: Metric) -> Measure:
        def measure(images: Tensor, batch: Batch) -> Mapping[str, Column]:
            own = metric.measure(images, batch)
            beside = metric.measure_reconstructions(rebuilt(batch), batch)
            return {**own, **{f"{REBUILT}{name}": column for name, column in beside.items()}}

        return measure

    return {name: both(metric) for name, metric in metrics.items()}


def _digests(images: Tensor) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images.cpu().contiguous()]


def _placed(batch: Batch, chunk: range, total: int) -> Batch:
    """The batch as a part of one global batch that is the whole evaluation, so that ``start`` is the index."""
    if len(batch) != len(chunk):
        raise InputError(f"samples {chunk.start} to {chunk.stop} were asked for, {len(batch)} came; lower num_images")
    return replace(batch, number=0, start=chunk.start, total=total)
