"""Rotary embedding of the places of a feature map (RoPE, arXiv:2104.09864, in 2-D as in arXiv:2501.01423)."""

from __future__ import annotations

import torch
from torch import Tensor

PERIOD = 10_000.0
"""The slowest pair of features turns by about 1 / PERIOD per place, the fastest by 1 (radians)."""


def rotary_table(height: int, width: int, dim: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles by which ``dim`` features are turned -> two of float32 (height * width, dim / 2).

    Places run row by row. The first half of the pairs of features turns with the row, the second with the column, by
    frequencies PERIOD^(-4 i / dim) (arXiv:2104.09864, section 3.2.2, on each axis). Raises ValueError unless ``dim`` is
    divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"a two-dimensional rotary embedding needs features divisible by 4, got {dim}")
    quarter = dim // 4
    frequencies = PERIOD ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    rows, columns = (torch.arange(n, device=device)[:, None] * frequencies for n in (height, width))
    rows, columns = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (..., L, dim), feature i turned against feature i + dim / 2 by the angles of ``table``."""
    cos, sin = table
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
