"""Euler's method for the probability-flow ODE."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from latentdiff.diffusion.samplers.levels import begin, hook, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path


class Euler:
    """Euler in y = x / alpha over r = sigma / alpha, where dy/dr = (y - x0_hat) / r (arXiv:2206.00364 algorithm 1).

    Multiplied out in (alpha, sigma) it needs no division by alpha. On rectified flow it is exactly Euler with the
    velocity, x + (t_next - t) u (diffusers' FlowMatchEulerDiscreteScheduler); on DDPM paths it is k-diffusion's and
    diffusers' EulerDiscreteScheduler. It equals DDIM with eta = 0 on every path (arXiv:2010.02502 section 4.3).
    Deterministic: ``noise_at`` is not called.
    """

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is)."""
        x, times, levels = begin(path, x, times)
        for i, (start, end) in enumerate(pairwise(levels)):
            x0_hat = denoise(x, times[i].expand(len(x)))
            x = hook(on_step, i, times[i + 1], move(x, x0_hat, start, end), x0_hat)
        return x
