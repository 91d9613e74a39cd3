"""Which samples of a training batch lose a part of their condition (classifier-free guidance, arXiv:2207.12598)."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws


def dropped_samples(draws: Draws, part: str, drop: float) -> Tensor:
    """bool (B,), each true with probability ``drop``, by draws of the part's own.

    On the CPU, wherever the batch is: captions are chosen there, and nothing waits for the device.
    """
    if drop == 0:
        return torch.zeros(draws.rows.stop - draws.rows.start, dtype=torch.bool)
    return draws.on("cpu").uniform(f"drop/{part}") < drop


def check_drop(drop: float) -> float:
    """Raises InputError unless ``drop`` is a probability."""
    if not 0 <= drop <= 1:
        raise InputError(f"conditioner drop: expected a probability from 0 to 1 (0.1 is usual), got {drop}")
    return drop
