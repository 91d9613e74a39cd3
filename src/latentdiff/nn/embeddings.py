"""Embeddings of the network time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of t (B,) -> float32 (B, dim): cosines first, then sines, as in LDM.

    Frequencies max_period^(-i / (dim // 2)) (arXiv:1706.03762, section 3.5); an odd ``dim`` ends with a zero.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))


def position_embedding(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed sine-cosine embedding of the places of a feature map -> float32 (1, dim, height, width).

    The first half of the channels tells the row, the second the column (arXiv:2010.11929, appendix D.4, in 2-D).
    Wavelengths up to about 600 places. Raises ValueError unless ``dim`` is divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"a two-dimensional position embedding needs channels divisible by 4, got {dim}")
    rows, columns = (timestep_embedding(torch.arange(n, device=device), dim // 2, 100.0) for n in (height, width))
    rows, columns = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).permute(2, 0, 1)[None]
