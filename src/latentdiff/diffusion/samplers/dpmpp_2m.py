"""DPM-Solver++(2M), the second-order multistep solver in data prediction."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from latentdiff.diffusion.samplers.levels import Level, begin, hook, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path


class DPMSolverPP2M:
    """DPM-Solver++(2M) (arXiv:2211.01095 algorithm 2): the first-order step with x0 extrapolated in lambda.

    D = x0_hat + (h / 2 h_previous) (x0_hat - x0_previous), with h the steps in lambda = log(alpha / sigma). Where
    either h or h_previous is infinite (out of alpha = 0, into sigma = 0), and in the first step, D = x0_hat.
    Deterministic: ``noise_at`` is not called.
    """

    def __init__(self, *, lower_order_final: bool = True):
        """``lower_order_final``: the last step is of first order (steadier with few steps, diffusers' option)."""
        self.lower_order_final = lower_order_final

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is)."""
        x, times, levels = begin(path, x, times)
        factor, previous = extrapolation(levels, self.lower_order_final), None
        for i, (start, end) in enumerate(pairwise(levels)):
            x0_hat = denoise(x, times[i].expand(len(x)))
            data = x0_hat if previous is None else x0_hat + factor[i] * (x0_hat - previous)
            x = hook(on_step, i, times[i + 1], move(x, data, start, end), x0_hat)
            previous = x0_hat
        return x


def extrapolation(levels: list[Level], lower_order_final: bool) -> list[float]:
    """h / (2 h_previous) of each of the N steps, 0 where the step is of first order."""
    h = [end.half_log_snr - start.half_log_snr for start, end in pairwise(levels)]
    factor = [0.0] + [now / (2 * before) if math.isfinite(now + before) else 0.0 for before, now in pairwise(h)]
    return [*factor[:-1], 0.0] if lower_order_final else factor
