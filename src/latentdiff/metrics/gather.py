"""Results of single images, keyed by the image's index and joined over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from latentdiff.types import Batch


class Indexed:
    """Rows kept by index. ``gathered`` is in index order and the same on every rank, however they were split."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Sequence[Any]]] = []

    def add(self, rows: Sequence[Any], batch: Batch) -> None:
        """One row per image of the batch, whose indices are ``batch.start`` onwards: a list, or a tensor (B, ...)."""
        if len(rows) != len(batch):
            raise ValueError(f"{len(rows)} rows came for a batch of {len(batch)} images")
        self._parts.append((batch.start, rows.detach().cpu() if isinstance(rows, Tensor) else list(rows)))

    def gathered(self) -> list[Any]:
        """All rows. Collective. Raises ValueError when there are none or an index came twice."""
        parts = self._parts
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            by_rank: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(by_rank, parts)
            parts = [part for rank in by_rank for part in rank]
        rows = {start + i: row for start, part in parts for i, row in enumerate(part)}
        repeated = sum(len(part) for _, part in parts) - len(rows)
        if not rows or repeated:
            raise ValueError(f"{repeated} images were measured more than once" if rows else "no image was measured")
        return [rows[index] for index in sorted(rows)]


def summed(sums: Tensor) -> Tensor:
    """The sum over all ranks of tensors of one shape. Collective; leaves the argument as it is."""
    total = sums.clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total
