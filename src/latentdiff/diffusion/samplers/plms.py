"""PLMS, the linear multistep form of pseudo numerical methods for diffusion models."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from latentdiff.diffusion.samplers.levels import Level, begin, hook, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the noise predictions, newest first, by how many there are (arXiv:2202.09778 eq. 12)."""


class PLMS:
    """DDIM's step with the noise prediction extrapolated by Adams and Bashforth (PNDM, arXiv:2202.09778 section 3).

    The weights are those of steps even in t, and of second order in the mapped steps of the probability flow. Warm-up
    as in LDM's PLMS and diffusers' PNDMScheduler(skip_prk_steps=True): the first step is made twice, the second time
    with the mean of the noise predicted at both its ends, then come two, three and from the fourth on four predictions.
    N steps call the network N + 1 times. Out of alpha = 0 or into sigma = 0 the first step is not repeated, as the
    noise has no such mean there. Deterministic: ``noise_at`` is not called.
    """

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is)."""
        x, times, levels = begin(path, x, times)
        noises: list[Tensor] = []
        for i, (start, end) in enumerate(pairwise(levels)):
            x0_hat = denoise(x, times[i].expand(len(x)))
            noise = _noise(x, x0_hat, start)
            noises = [noise, *noises[:3]]
            reached = move(x, x0_hat, start, end)
            if i > 0:
                mixed = sum(weight * past for weight, past in zip(ADAMS_BASHFORTH[len(noises) - 1], noises))
                reached = reached + _per_noise(start, end) * (mixed - noise)
            elif start.alpha > 0 and end.sigma > 0:
                ahead = _noise(reached, denoise(reached, times[1].expand(len(x))), end)
                reached = reached + _per_noise(start, end) * (ahead - noise) / 2
            x = hook(on_step, i, times[i + 1], reached, x0_hat)
        return x


def _noise(x: Tensor, x0_hat: Tensor, level: Level) -> Tensor:
    return (x - level.alpha * x0_hat) / level.sigma


def _per_noise(start: Level, end: Level) -> float:
    """d x_end / d noise of DDIM's step written in the noise, x_end = (alpha_end / alpha_start) x + this * noise."""
    return end.sigma - end.alpha * start.sigma / start.alpha
