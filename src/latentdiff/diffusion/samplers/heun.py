"""Heun's method for the probability-flow ODE, with EDM's optional churn."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.samplers.levels import Level, begin, decay, hook, levels_at, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path


class Heun:
    """EDM's sampler (arXiv:2206.00364): algorithm 1, and algorithm 2 where ``s_churn`` > 0, on any path.

    Heun's method in y = x / alpha over r = sigma / alpha. Multiplied out, the second evaluation x0_end adds
    (alpha_end / 2) (r_start / r_end - 1) (x0_end - x0_hat) to Euler's step. Into sigma = 0 (as in EDM) and out of
    alpha = 0, where r is infinite, the step is Euler's. N steps call the network at most 2 N times.

    Churn raises r to (1 + min(s_churn / N, sqrt(2) - 1)) r before each step whose r lies in [s_tmin, s_tmax], by adding
    noise and moving t along; never above the path's own noisiest level, and on a table between entries as well.
    """

    def __init__(self, *, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float | None = None, s_noise: float = 1.0):
        """``s_tmax``: None for no bound; ``s_noise``: factor of the churned noise. Deterministic with s_churn = 0."""
        bound = math.inf if s_tmax is None else s_tmax
        if not (0 <= s_churn < math.inf and 0 <= s_tmin <= bound and 0 < s_noise < math.inf):
            raise InputError(
                "Heun: expected s_churn >= 0, 0 <= s_tmin <= s_tmax (in sigma / alpha) and s_noise > 0; got "
                f"s_churn={s_churn}, s_tmin={s_tmin}, s_tmax={s_tmax}, s_noise={s_noise}"
            )
        self.s_churn, self.s_tmin, self.s_tmax, self.s_noise = s_churn, s_tmin, s_tmax, s_noise

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is).

        A step that is churned draws ``noise_at(i)``.
        """
        x, times, levels = begin(path, x, times)
        raised = [self._raised(path, start, levels[0], len(levels) - 1) for start in levels[:-1]]
        for i, (start, end) in enumerate(pairwise(levels)):
            t = times[i]
            if (churned := raised[i]) is not None:
                t_raised, level = churned
                x, start, t = self._churn(x, start, level, noise_at(i)), level, times.new_full((), t_raised)
            x0_hat = denoise(x, t.expand(len(x)))
            reached = move(x, x0_hat, start, end)
            if start.alpha > 0 and end.sigma > 0:
                x0_end = denoise(reached, times[i + 1].expand(len(x)))
                reached = reached + end.alpha / 2 * (1 / decay(start, end) - 1) * (x0_end - x0_hat)
            x = hook(on_step, i, times[i + 1], reached, x0_hat)
        return x

    def _raised(self, path: Path, start: Level, top: Level, steps: int) -> tuple[float, Level] | None:
        """Time and level after churning at ``start``, at most ``top``; None where nothing is churned."""
        bound = math.inf if self.s_tmax is None else self.s_tmax
        if self.s_churn == 0 or start.alpha == 0 or not self.s_tmin <= start.sigma / start.alpha <= bound:
            return None
        gamma = min(self.s_churn / steps, math.sqrt(2) - 1)
        log_snr = 2 * max(start.half_log_snr - math.log1p(gamma), top.half_log_snr)
        t = path.time_at(torch.tensor([log_snr], dtype=torch.float64, device="cpu"))
        level = levels_at(path, t)[0]
        return (t.item(), level) if decay(level, start) < 1 else None

    def _churn(self, x: Tensor, start: Level, level: Level, noise: Tensor) -> Tensor:
        """x carried from ``start`` up to the noisier ``level``."""
        added = level.sigma * math.sqrt(1 - decay(level, start) ** 2)
        return level.alpha / start.alpha * x + self.s_noise * added * noise.to(x)
