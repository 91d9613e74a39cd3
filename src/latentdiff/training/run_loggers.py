"""What a logger of a training may take beside values. Each of ours takes some of it, Lightning's take none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import pytorch_lightning as pl
from PIL import Image

Cell = str | int | float | None | Image.Image
"""Of a table."""


@runtime_checkable
class GoesOn(Protocol):
    """Has to know where a run starts, because values of later batches that it has already come again."""

    def go_on(self, batches_seen: int) -> None: ...


@runtime_checkable
class TakesConfig(Protocol):
    def log_config(self, config: Mapping[str, object], environment: Mapping[str, object]) -> None: ...


@runtime_checkable
class TakesPictures(Protocol):
    def log_picture(self, name: str, path: Path, counters: Mapping[str, int]) -> None:
        """A PNG that stays where it is; ``counters`` as in ``training.counters``."""
        ...


@runtime_checkable
class TakesTables(Protocol):
    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], counters: Mapping[str, int]
    ) -> None: ...


@runtime_checkable
class TakesCheckpoints(Protocol):
    def log_checkpoint(self, path: Path, aliases: Sequence[str], about: Mapping[str, object]) -> None: ...


Kind = TypeVar("Kind")


def that_take(trainer: pl.Trainer, kind: type[Kind]) -> list[Kind]:
    """The trainer's loggers of this kind."""
    return [logger for logger in trainer.loggers if isinstance(logger, kind)]
