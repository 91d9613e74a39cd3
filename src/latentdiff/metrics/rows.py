"""Rows of measured images in memory, and the rows that several processes hold, joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentdiff.types import Column, Rows

Part = tuple[int, Mapping[str, Column]]
"""Index of the first image, and the columns of consecutive ones."""


class JoinedRows:
    """The ``Rows`` of parts in any order, which together are images 0 .. N - 1, each once.

    Raises:
        ValueError: there is no image, one came twice or is missing.
    """

    def __init__(self, parts: Sequence[Part]):
        self._parts: list[Mapping[str, Any]] = [columns for _, columns in sorted(parts, key=lambda part: part[0])]
        counts = [_count(columns) for columns in self._parts]
        expected, self._count = 0, sum(counts)
        for (start, _), count in zip(sorted(parts, key=lambda part: part[0]), counts):
            if start != expected:
                what = "were measured more than once" if start < expected else "are missing"
                raise ValueError(f"images {min(start, expected)} to {max(start, expected) - 1} {what}")
            expected += count
        if not self._count:
            raise ValueError("no image was measured")

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> Any:
        parts = [columns[name] for columns in self._parts]
        return torch.cat(parts) if isinstance(parts[0], Tensor) else [row for part in parts for row in part]

    def blocks(self, name: str) -> Iterator[Tensor]:
        return (columns[name] for columns in self._parts)


def gathered(parts: Sequence[Part]) -> JoinedRows:
    """The rows of all ranks together, the same on each. Collective."""
    every = [(start, {name: _kept(column) for name, column in columns.items()}) for start, columns in parts]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        by_rank: list = [None] * dist.get_world_size()
        dist.all_gather_object(by_rank, every)
        every = [part for rank in by_rank for part in rank]
    return JoinedRows(every)


def column_if_any(rows: Rows, name: str) -> Any:
    """The whole column, None where these images have none of that name."""
    try:
        return rows.column(name)
    except KeyError:
        return None


def _kept(column: Column) -> Column:
    return column.detach().cpu() if isinstance(column, Tensor) else column


def _count(columns: Mapping[str, Column]) -> int:
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"columns of one part have one row per image; got lengths {sorted(lengths)}")
    return lengths.pop()
