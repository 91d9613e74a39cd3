"""What the hardware computes in, and where more is needed."""

from __future__ import annotations

import torch
from torch import Tensor


def computes_in_bf16(device_type: str) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU without the instructions emulates it."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def at_least_float32(x: Tensor) -> Tensor:
    """For losses and statistics: float32, or float64 where that is what comes in."""
    return x if x.dtype is torch.float64 else x.float()
