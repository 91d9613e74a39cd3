"""What the samplers share: the path's levels at the grid's times, the step between two levels, the caller's hook.

Levels are Python floats, taken once before the loop: nothing in a loop waits for the device, and a choice between
formulas is an ordinary ``if``.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.coefficients import at_least_float32
from latentdiff.types import OnStep, Path


class Level(NamedTuple):
    """The path at one time: x = alpha x0 + sigma noise."""

    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """lambda = log(alpha / sigma): -inf at alpha = 0, +inf at sigma = 0."""
        if self.alpha == 0:
            return -math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.sigma > 0 else math.inf


def begin(path: Path, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor, list[Level]]:
    """x in float32 or better, times on its device, and the path's levels at them (N + 1).

    Reads ``times`` on the host; pass them on the CPU to wait for no device at all. Raises ValueError where they are
    not at least two, falling within [0, 1], InputError where two are the same to the path.
    """
    on_host = times.detach().cpu()
    values = on_host.tolist()
    if len(values) < 2 or values[0] > 1 or values[-1] < 0 or not all(t > later for t, later in pairwise(values)):
        raise ValueError(f"expected at least two times that fall strictly within [0, 1], got {values}")
    levels = levels_at(path, on_host)
    if any(decay(start, end) >= 1 for start, end in pairwise(levels)):
        raise InputError(
            f"{len(values) - 1} steps are too many for {type(path).__name__}: two of their times have the same alpha "
            "and sigma; use fewer"
        )
    return at_least_float32(x), times.to(x.device), levels


def levels_at(path: Path, times: Tensor) -> list[Level]:
    """The path's levels at times (K,) on the CPU."""
    alpha, sigma = path.alpha_sigma(times)
    return [Level(*pair) for pair in zip(alpha.tolist(), sigma.tolist())]


def decay(start: Level, end: Level) -> float:
    """e^-h for the step h in lambda, in [0, 1): 0 out of alpha = 0 and into sigma = 0."""
    return (start.alpha * end.sigma) / (start.sigma * end.alpha)


def move(x: Tensor, x0_hat: Tensor, start: Level, end: Level, directed: float | None = None) -> Tensor:
    """x_end = alpha_end x0_hat + directed noise_hat, where noise_hat = (x - alpha_start x0_hat) / sigma_start.

    By default ``directed`` is sigma_end: the probability flow with x0_hat held constant, the first-order step of
    DPM-Solver++ (arXiv:2211.01095 section 4). A stochastic sampler keeps a smaller part of the noise and adds fresh
    noise to it. Finite at alpha_start = 0 and at sigma_end = 0.
    """
    kept = (end.sigma if directed is None else directed) / start.sigma
    return kept * x + (end.alpha - start.alpha * kept) * x0_hat


def hook(on_step: OnStep | None, i: int, t_next: Tensor, x: Tensor, x0_hat: Tensor) -> Tensor:
    """x after step i: what ``on_step`` returns in its place, or x itself."""
    replacement = on_step(i, t_next, x, x0_hat) if on_step else None
    return x if replacement is None else replacement
