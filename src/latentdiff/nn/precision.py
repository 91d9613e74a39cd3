"""What the hardware computes in."""

from __future__ import annotations

import torch


def computes_in_bf16(device_type: str) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU without the instructions emulates it."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
