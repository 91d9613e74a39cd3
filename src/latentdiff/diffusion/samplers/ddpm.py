"""DDPM's ancestral sampling."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.samplers.levels import Level, begin, decay, hook, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path


class DDPM:
    """Draws x_next from the posterior q(x_next | x, x0_hat), on any path (arXiv:2006.11239 algorithm 2 and eq. 7).

    With k = alpha sigma_next / (sigma alpha_next) the posterior has mean k (sigma_next / sigma) x + alpha_next
    (1 - k^2) x0_hat. Its variance is one of the paper's two (section 3.2):

    - ``fixed_small``: sigma_next^2 (1 - k^2), the posterior's own, exact for data that are one point. This is
      DDIM(eta=1) and EulerAncestral().
    - ``fixed_large``: sigma^2 (1 - k^2) v_next / v with v = alpha^2 + sigma^2, exact for data N(0, 1) in any number of
      steps. On variance-preserving paths v = 1, and this is beta.

    The grid decides between which times it steps; DDPM's own visits every entry of a table.
    """

    def __init__(self, *, variance: Literal["fixed_small", "fixed_large"] = "fixed_small"):
        if variance not in ("fixed_small", "fixed_large"):
            raise InputError(f"DDPM: variance must be fixed_small or fixed_large, got {variance!r}")
        self.variance = variance

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is).

        Step i adds ``noise_at(i)``, unless it ends at sigma = 0.
        """
        x, times, levels = begin(path, x, times)
        for i, (start, end) in enumerate(pairwise(levels)):
            x0_hat = denoise(x, times[i].expand(len(x)))
            x = move(x, x0_hat, start, end, directed=end.sigma * decay(start, end))
            if end.sigma > 0:
                x = x + math.sqrt(self._variance(start, end)) * noise_at(i).to(x)
            x = hook(on_step, i, times[i + 1], x, x0_hat)
        return x

    def _variance(self, start: Level, end: Level) -> float:
        unexplained = 1 - decay(start, end) ** 2
        if self.variance == "fixed_small":
            return end.sigma**2 * unexplained
        total = (end.alpha**2 + end.sigma**2) / (start.alpha**2 + start.sigma**2)
        return start.sigma**2 * unexplained * total
