"""How the paths' coefficients meet tensors of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.types import Path


def per_sample(coefficient: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with as many axes as ``like``."""
    return coefficient.view(-1, *[1] * (like.ndim - 1))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision and integers to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mix(path: Path, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``alpha(t) x0 + sigma(t) noise`` of shape (B, ...) for t (B,)."""
    alpha, sigma = path.alpha_sigma(t)
    return per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * noise
