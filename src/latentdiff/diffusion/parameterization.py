"""What the network predicts, and how x0 follows from it.

Each class gives the regression ``target``, the x0 that an output means, and ``x0_gain``, the size of d x0 / d output:
``|x0_hat - x0| = x0_gain |output - target|``.

Which pairs of path and parameterization are allowed (``check_pair``):

============  ================  ==================
.             RectifiedFlow     ScaledLinearDDPM
============  ================  ==================
Epsilon       t <= 0.99         allowed
Sample        allowed           allowed
V             allowed           allowed
Velocity      allowed           refused
============  ================  ==================
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.path import per_sample
from latentdiff.types import Parameterization, Path

T_MAX_WHERE_SINGULAR = 0.99
"""Largest t at which a prediction whose x0 gain is infinite at t = 1 is turned into x0."""


class Epsilon:
    """The noise (DDPM, arXiv:2006.11239 eq. 14): x0 = (x_t - sigma eps) / alpha."""

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        return noise

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = (per_sample(c, x_t) for c in path.alpha_sigma(t))
        return (x_t - sigma * output) / alpha

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha_sigma(t)
        return sigma / alpha


class Sample:
    """The clean data x0 itself."""

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        return x0

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        return output

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        return torch.ones_like(path.alpha_sigma(t)[0])


class V:
    """v = alpha noise - sigma x0 (progressive distillation, arXiv:2202.00512 section 4).

    x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2); the denominator is 1 on variance-preserving paths.
    """

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = (per_sample(c, x0) for c in path.alpha_sigma(t))
        return alpha * noise - sigma * x0

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = (per_sample(c, x_t) for c in path.alpha_sigma(t))
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha_sigma(t)
        return sigma / (alpha**2 + sigma**2)


class Velocity:
    """The path's velocity u = alpha' x0 + sigma' noise (flow matching, arXiv:2210.02747 section 4).

    x0 = (sigma' x_t - sigma u) / (sigma' alpha - sigma alpha').
    """

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        d_alpha, d_sigma = (per_sample(c, x0) for c in path.derivatives(t))
        return d_alpha * x0 + d_sigma * noise

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        _, sigma = path.alpha_sigma(t)
        _, d_sigma = path.derivatives(t)
        sigma, d_sigma, wronskian = (per_sample(c, x_t) for c in (sigma, d_sigma, self._wronskian(path, t)))
        return (d_sigma * x_t - sigma * output) / wronskian

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        return path.alpha_sigma(t)[1] / self._wronskian(path, t)

    def _wronskian(self, path: Path, t: Tensor) -> Tensor:
        """sigma' alpha - sigma alpha', positive because the log-SNR falls."""
        alpha, sigma = path.alpha_sigma(t)
        d_alpha, d_sigma = path.derivatives(t)
        return d_sigma * alpha - sigma * d_alpha


def check_pair(path: Path, parameterization: Parameterization) -> float:
    """The largest t at which x0 may be computed from the output.

    Raises InputError for a velocity on a discrete table, where t is only an index and has no derivative of its own.
    """
    name = f"{type(parameterization).__name__} on {type(path).__name__}"
    if isinstance(parameterization, Velocity) and getattr(path, "steps", None) is not None:
        raise InputError(
            f"{name}: a table of discrete steps has no velocity in t; use V, Epsilon or Sample, or RectifiedFlow"
        )
    gain = parameterization.x0_gain(path, torch.ones(1, dtype=torch.float64, device="cpu"))
    return 1.0 if bool(torch.isfinite(gain)) else T_MAX_WHERE_SINGULAR
