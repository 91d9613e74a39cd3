"""DDIM, from deterministic (eta = 0) to DDPM's ancestral sampling (eta = 1)."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.samplers.levels import begin, decay, hook, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path


class DDIM:
    """Denoising diffusion implicit models (arXiv:2010.02502 eq. 12 and 16) on any path.

    x_next = alpha_next x0_hat + sqrt(sigma_next^2 - s^2) noise_hat + s noise, where s / eta is the standard deviation
    of q(x_next | x, x0): s = eta (sigma_next / sigma) sqrt(sigma^2 - (alpha / alpha_next)^2 sigma_next^2).
    """

    def __init__(self, *, eta: float = 0.0):
        """``eta`` in [0, 1]: the share of the posterior's standard deviation that is drawn anew."""
        if not 0 <= eta <= 1:
            raise InputError(f"DDIM: eta must be in [0, 1], got {eta}")
        self.eta = eta

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is).

        With eta > 0 step i adds ``noise_at(i)``, unless it ends at sigma = 0.
        """
        x, times, levels = begin(path, x, times)
        for i, (start, end) in enumerate(pairwise(levels)):
            x0_hat = denoise(x, times[i].expand(len(x)))
            fresh = self.eta * end.sigma * math.sqrt(1 - decay(start, end) ** 2)
            x = move(x, x0_hat, start, end, directed=math.sqrt(end.sigma**2 - fresh**2))
            if fresh > 0:
                x = x + fresh * noise_at(i).to(x)
            x = hook(on_step, i, times[i + 1], x, x0_hat)
        return x
