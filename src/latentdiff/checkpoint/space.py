"""Bytes: what a checkpoint takes and what its disk has left."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def tensor_bytes(value: object) -> int:
    """Of all tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


def free_bytes(path: Path) -> int:
    """That a user can write on the disk of ``path``, which need not exist yet."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


def readable(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    power = 0
    while count >= 1024 and power < len(UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.4g} {UNITS[power]}"
