"""DPM-Solver++(2M), the second-order multistep solver in data prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.diffusion.path import at_least_float32
from latentdiff.diffusion.samplers.ode_step import ode_step
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
        x, times = at_least_float32(x), times.to(x.device)
        alpha, sigma = path.alpha_sigma(times)
        extrapolation = self._extrapolation(path.log_snr(times))
        previous = None
        for i in range(len(times) - 1):
            x0_hat = denoise(x, times[i].expand(len(x)))
            data = x0_hat if previous is None else x0_hat + extrapolation[i] * (x0_hat - previous)
            x = ode_step(x, data, (alpha[i], sigma[i]), (alpha[i + 1], sigma[i + 1]))
            previous = x0_hat
            replacement = on_step(i, times[i + 1], x, x0_hat) if on_step else None
            x = x if replacement is None else replacement
        return x

    def _extrapolation(self, log_snr: Tensor) -> Tensor:
        """h / (2 h_previous) of each of the N steps, 0 where the step is of first order; log_snr (N + 1,)."""
        h = log_snr.diff() / 2
        factor = torch.zeros_like(h)
        usable = torch.isfinite(h[1:]) & torch.isfinite(h[:-1])
        factor[1:] = torch.where(usable, h[1:] / (2 * h[:-1]), 0)
        if self.lower_order_final:
            factor[-1] = 0
        return factor
