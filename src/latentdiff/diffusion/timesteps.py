"""Laws of the training time t, as inverse distribution functions.

Each takes uniforms u (B,) in [0, 1), keyed or stratified as the caller likes, to t (B,) in [0, t_max].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentdiff.config.errors import InputError


class Uniform:
    """t uniform in [0, t_max)."""

    def __call__(self, u: Tensor, t_max: float = 1.0) -> Tensor:
        return u * t_max


class LogitNormal:
    """logit(t) ~ N(mean, std^2), cut off at t_max (SD3, arXiv:2403.03206 section 3.1, eq. 19)."""

    def __init__(self, *, mean: float = 0.0, std: float = 1.0):
        if std <= 0:
            raise InputError(f"LogitNormal: std must be positive, got {std}")
        self.mean, self.std = mean, std

    def __call__(self, u: Tensor, t_max: float = 1.0) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u * self._cdf(t_max)))

    def _cdf(self, t: float) -> float:
        if t >= 1:
            return 1.0
        z = (math.log(t / (1 - t)) - self.mean) / self.std
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))


class DiscreteUniform:
    """Each of the table entries t = 1/N, 2/N, ... up to t_max equally likely (DDPM, arXiv:2006.11239 algorithm 1)."""

    def __init__(self, *, steps: int):
        if steps < 1:
            raise InputError(f"DiscreteUniform: steps must be at least 1, got {steps}")
        self.steps = steps

    def __call__(self, u: Tensor, t_max: float = 1.0) -> Tensor:
        entries = max(1, math.floor(t_max * self.steps + 1e-6))
        index = (u * entries).floor().clamp(max=entries - 1)
        return (index + 1) / self.steps
