"""What training takes beside time: memory, and waiting for data."""

from __future__ import annotations

import resource
import sys
import time

import torch
from pytorch_lightning.profilers import PassThroughProfiler

FETCH = "train_dataloader_next"
"""In the name of the action in which Lightning fetches a batch."""


class DataWait(PassThroughProfiler):
    """Lightning's profiler that profiles nothing but how long batches were waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._began = self._seconds = 0.0

    def start(self, action_name: str) -> None:
        if FETCH in action_name:
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if FETCH in action_name:
            self._seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """Seconds since it was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def peak_memory(device: torch.device) -> float:
    """GiB: the most that PyTorch has had allocated on a GPU, on a CPU the most that was resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
