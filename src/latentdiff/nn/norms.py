"""Normalisation of features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.nn.precision import at_least_float32


class GroupNorm(nn.GroupNorm):
    """GroupNorm (arXiv:1803.08494) with statistics in float32 for every input dtype.

    ``groups`` is exact where it divides ``channels``; otherwise the greatest common divisor of both is taken, so that
    small models of, say, 16 or 24 channels work with the published value 32.
    """

    def __init__(self, channels: int, groups: int = 32, *, eps: float = 1e-5) -> None:
        super().__init__(math.gcd(groups, channels), channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        # The CPU kernel reads bfloat16, accumulates in float32 and takes float32 weights: a cast would cost 1.5 times.
        # On a GPU autocast runs the norm in float32; without autocast all dtypes agree.
        if x.device.type != "cpu" and x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last axis (arXiv:1910.07467, eq. 4), computed in at least float32.

    ``affine``: times a learned weight per feature, which starts at 1. The result has the dtype of ``x``.
    """

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = at_least_float32(x)
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return (y if self.weight is None else y * self.weight).to(x.dtype)
