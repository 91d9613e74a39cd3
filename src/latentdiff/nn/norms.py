"""Group normalisation for convolutional features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
