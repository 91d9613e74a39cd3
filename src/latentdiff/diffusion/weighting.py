"""Loss weights in the space of the target, as functions of (path, parameterization, t).

A weight w(t) on ``|x0_hat - x0|^2`` is ``w(t) x0_gain(t)^2`` on ``|output - target|^2`` (arXiv:2303.00848).
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Parameterization, Path


class Unit:
    """1: the plain mean squared error of the target (DDPM's simple loss for epsilon, flow matching for velocity)."""

    def __call__(self, path: Path, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.ones_like(path.alpha_sigma(t)[0])


class MinSNR:
    """min(SNR, gamma) on the x0 error (arXiv:2303.09556 section 3).

    That is min(1, gamma / SNR) for epsilon and min(SNR, gamma) / (SNR + 1) for v on a variance-preserving path.
    Evaluated at t kept 1e-5 away from both ends, where it has reached its limits and is finite.
    """

    _MARGIN = 1e-5

    def __init__(self, *, gamma: float = 5.0):
        if gamma <= 0:
            raise InputError(f"MinSNR: gamma must be positive, got {gamma}")
        self.gamma = gamma

    def __call__(self, path: Path, parameterization: Parameterization, t: Tensor) -> Tensor:
        t = t.clamp(self._MARGIN, 1 - self._MARGIN)
        alpha, sigma = path.alpha_sigma(t)
        return ((alpha / sigma) ** 2).clamp(max=self.gamma) * parameterization.x0_gain(path, t) ** 2
