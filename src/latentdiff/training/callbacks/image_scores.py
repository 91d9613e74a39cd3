"""Numbers of single images, by the metrics that can give one of a single image."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.evaluation.curve import numbers_of
from latentdiff.evaluation.engine import ComparesWithReal
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.rows import JoinedRows
from latentdiff.types import Batch, Column, Metric

CONTROL = ".shuffled."
"""In names of numbers that compare images with each other's conditions."""


class ImageScores:
    """What each metric says of one image: ``result`` of its row alone. Those that compare with real images, and
    measures that need more than one image, are left out.

    Args:
        metrics: by name.
    """

    def __init__(self, metrics: Mapping[str, Metric]):
        single = {name: _of_single_images(metric) for name, metric in metrics.items()}
        self.metrics = {name: metric for name, metric in single.items() if metric is not None}

    def check(self, batch: Batch) -> None:
        """Raises InputError where these samples lack what a metric reads."""
        for metric in self.metrics.values():
            if hasattr(metric, "check"):
                metric.check(batch)

    def __call__(self, images: Tensor, batch: Batch) -> list[dict[str, float]]:
        """Images, uint8 (B, 3, H, W), made for ``batch`` -> of each its numbers, ``METRIC.NUMBER``."""
        found: list[dict[str, float]] = [{} for _ in batch.keys]
        for name, metric in self.metrics.items():
            columns = metric.measure(images, batch)
            for i, numbers in enumerate(found):
                numbers |= _numbers(name, metric, {column: rows[i : i + 1] for column, rows in columns.items()})
        return found


def _numbers(name: str, metric: Metric, row: Mapping[str, Column]) -> dict[str, float]:
    every = numbers_of({name: metric.result(JoinedRows([(0, row)]))})
    return {number: value for number, value in every.items() if CONTROL not in number}


def _of_single_images(metric: Metric) -> Metric | None:
    if isinstance(metric, OnFeatures):
        single = [each for each in metric.measures if not each.needs_reference and _takes_one(each, metric)]
        return OnFeatures(features=metric.features, measures=single) if single else None
    return None if isinstance(metric, ComparesWithReal) and metric.needs_reference else metric


def _takes_one(measure: object, metric: OnFeatures) -> bool:
    try:
        measure.check(metric.features, 1)
    except InputError:
        return False
    return True
