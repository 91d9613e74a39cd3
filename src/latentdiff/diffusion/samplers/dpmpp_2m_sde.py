"""SDE-DPM-Solver++(2M): DPM-Solver++(2M) for the reverse SDE."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.samplers.dpmpp_2m import extrapolation
from latentdiff.diffusion.samplers.levels import begin, decay, hook, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path


class DPMSolverPP2MSDE:
    """SDE-DPM-Solver++(2M) (arXiv:2211.01095), with k-diffusion's ``eta``.

    x_next = (sigma_next / sigma) e^(-eta h) x + alpha_next (1 - e^(-(1 + eta) h)) D + sigma_next sqrt(1 - e^(-2 eta h))
    noise, with D and h those of ``DPMSolverPP2M``. eta = 1 is the paper's solver, eta = 0 is ``DPMSolverPP2M``. Its
    first-order step with eta = 1 is DDPM's.
    """

    def __init__(self, *, eta: float = 1.0, lower_order_final: bool = True):
        """``eta`` >= 0: the share of the SDE's noise; ``lower_order_final``: the last step is of first order."""
        if not 0 <= eta < math.inf:
            raise InputError(f"DPMSolverPP2MSDE: eta must be at least 0 and finite, got {eta}")
        self.eta, self.lower_order_final = eta, lower_order_final

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is).

        With eta > 0 step i adds ``noise_at(i)``, unless it ends at sigma = 0.
        """
        x, times, levels = begin(path, x, times)
        factor, previous = extrapolation(levels, self.lower_order_final), None
        for i, (start, end) in enumerate(pairwise(levels)):
            x0_hat = denoise(x, times[i].expand(len(x)))
            data = x0_hat if previous is None else x0_hat + factor[i] * (x0_hat - previous)
            kept = decay(start, end) ** self.eta
            x = move(x, data, start, end, directed=end.sigma * kept)
            if end.sigma > 0 and kept < 1:
                x = x + end.sigma * math.sqrt(1 - kept**2) * noise_at(i).to(x)
            x = hook(on_step, i, times[i + 1], x, x0_hat)
            previous = x0_hat
        return x
