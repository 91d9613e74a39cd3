"""Which GPUs each of several trials beside each other may use."""

from __future__ import annotations

import os


def shares(jobs: int) -> list[dict[str, str]]:
    """Environment variables per slot: the GPUs in equal parts, each GPU for several slots where there are fewer GPUs;
    nothing is set for one trial at a time, and without CUDA."""
    if jobs == 1:
        return [{}]
    visible = _visible()
    if not visible:
        return [{}] * jobs
    parts = [visible[i::jobs] or [visible[i % len(visible)]] for i in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def _visible() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
