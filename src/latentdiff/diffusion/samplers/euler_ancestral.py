"""Euler ancestral: an Euler step beyond the next level, and fresh noise back up to it."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.samplers.levels import begin, decay, hook, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path


class EulerAncestral:
    """k-diffusion's ancestral Euler, on any path.

    With r = sigma / alpha: Euler's step in x / alpha goes down to sqrt(r_next^2 - up^2) and noise of standard deviation
    up = min(r_next, eta (r_next / r) sqrt(r^2 - r_next^2)) is added. Multiplied by alpha_next this needs no division by
    alpha, so it runs on rectified flow as well. For eta <= 1 and s_noise = 1 it equals DDIM(eta) on every path, for
    eta = 1 DDPM("fixed_small"); a large eta replaces all noise at each step (diffusers' flow-matching Euler with
    ``stochastic_sampling``).
    """

    def __init__(self, *, eta: float = 1.0, s_noise: float = 1.0):
        """``eta`` >= 0: how much of the noise is drawn anew; ``s_noise`` > 0: factor of the fresh noise."""
        if not (0 <= eta < math.inf and 0 < s_noise < math.inf):
            raise InputError(f"EulerAncestral: expected eta >= 0 and s_noise > 0, got eta={eta}, s_noise={s_noise}")
        self.eta, self.s_noise = eta, s_noise

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is).

        With eta > 0 step i adds ``noise_at(i)``, unless it ends at sigma = 0.
        """
        x, times, levels = begin(path, x, times)
        for i, (start, end) in enumerate(pairwise(levels)):
            x0_hat = denoise(x, times[i].expand(len(x)))
            up = end.sigma * min(1.0, self.eta * math.sqrt(1 - decay(start, end) ** 2))
            x = move(x, x0_hat, start, end, directed=math.sqrt(end.sigma**2 - up**2))
            if up > 0:
                x = x + self.s_noise * up * noise_at(i).to(x)
            x = hook(on_step, i, times[i + 1], x, x0_hat)
        return x
