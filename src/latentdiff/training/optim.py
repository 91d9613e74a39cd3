"""Learning-rate schedules: pure functions of the batch number, so that a resumed run continues them exactly."""

from __future__ import annotations

import math

from torch.optim import Optimizer


class WarmupConstant:
    """Factor that rises linearly to 1 over ``warmup`` batches and stays there."""

    def __init__(self, *, warmup: int = 0):
        self.warmup = warmup

    def __call__(self, batch: int) -> float:
        return min(1.0, (batch + 1) / (self.warmup + 1))


class WarmupCosine:
    """Factor that rises linearly to 1 over ``warmup`` batches, then falls as a half cosine to ``final`` at ``total``.

    Cosine annealing without restarts (arXiv:1608.03983, eq. 5).
    """

    def __init__(self, *, warmup: int = 0, total: int, final: float = 0.0):
        self.warmup, self.total, self.final = warmup, total, final

    def __call__(self, batch: int) -> float:
        if batch < self.warmup:
            return (batch + 1) / (self.warmup + 1)
        progress = min(1.0, (batch - self.warmup) / max(1, self.total - self.warmup))
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Gives every group ``factor`` times the rate that the optimiser was built with, and returns it."""
    rate = optimizer.defaults["lr"] * factor
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def restore_settings(optimizer: Optimizer) -> None:
    """Gives every group the settings that the optimiser was built with: loading a state replaces them by the saved.

    Not the rate, which every batch sets.
    """
    for group in optimizer.param_groups:
        group.update({name: value for name, value in optimizer.defaults.items() if name in group and name != "lr"})
