"""What the hardware computes in, and where more is needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def computes_in_bf16(device_type: str) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU without the instructions emulates it."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def at_least_float32(x: Tensor) -> Tensor:
    """For losses and statistics: float32, or float64 where that is what comes in."""
    return x if x.dtype is torch.float64 else x.float()


def cast_matmul_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Linear and convolution weights of a frozen ``module`` in the ``dtype`` of the autocast it runs under; returns it.

    Autocast would cast them at every call, as it remembers casts of trained weights alone. The numbers are the same.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            part.to(dtype)
    return module
