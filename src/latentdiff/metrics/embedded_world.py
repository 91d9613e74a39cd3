"""What the metrics of the embedded world share: images are read by ``shapes.checker``, scenes are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from latentdiff.config.errors import InputError
from latentdiff.types import Batch

Row = TypeVar("Row")


def check_scenes(batch: Batch, what: str) -> None:
    """Raises InputError, naming the metric ``what``, where ``batch.attributes`` are no scenes of the embedded world."""
    if batch.attributes is None or any("objects" not in scene for scene in batch.attributes):
        raise InputError(
            f"{what} reads images of the embedded world, and these samples are no scenes of it; use data=shapes, or "
            "other metrics, e.g. metrics=frechet"
        )


def turned(rows: Sequence[Row]) -> list[Row]:
    """Each place gets the row that stands half of them further on, in a circle: what was asked of another sample.

    The control of every metric that compares an image with what it was made for. One row alone stays.
    """
    shift = len(rows) // 2
    return [*rows[shift:], *rows[:shift]]
