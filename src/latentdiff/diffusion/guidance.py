"""Guidance: one x0_hat from the denoiser's answers under several conditions.

It acts on x0_hat. At a given (x_t, t) x0 is an affine function of every other prediction (epsilon, v, velocity), and
the coefficients of a guided mix sum to 1, so mixing x0 is mixing any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.path import per_sample
from latentdiff.types import Conditions


class Unguided:
    """The conditional answer as it is."""

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return denoiser.denoise(x_t, t, conditions.cond)


class ClassifierFree:
    """null + scale (cond - null) (arXiv:2207.12598 eq. 6, with scale = 1 + w).

    Both answers come from one call on twice the batch. At scale 1 the null condition is not computed.
    """

    def __init__(self, *, scale: float):
        self.scale = scale

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        if self.scale == 1:
            return denoiser.denoise(x_t, t, conditions.cond)
        cond, null = _both(denoiser, x_t, t, conditions)
        return null + self.scale * (cond - null)


class Interval:
    """Classifier-free guidance at t_low <= t <= t_high alone, scale 1 elsewhere (arXiv:2404.07724 section 3)."""

    def __init__(self, *, scale: float, t_low: float, t_high: float):
        if not 0 <= t_low <= t_high <= 1:
            raise InputError(f"Interval: expected 0 <= t_low <= t_high <= 1, got t_low={t_low}, t_high={t_high}")
        self.scale, self.t_low, self.t_high = scale, t_low, t_high

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        cond, null = _both(denoiser, x_t, t, conditions)
        inside = per_sample((t >= self.t_low) & (t <= self.t_high), cond)
        return torch.where(inside, null + self.scale * (cond - null), cond)


def _both(denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
    """x0_hat under the condition and under the null condition."""
    joined = conditions.cond.cat(conditions.null)
    cond, null = denoiser.denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), joined).chunk(2)
    return cond, null
