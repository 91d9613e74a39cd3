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
