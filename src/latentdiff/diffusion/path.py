"""Gaussian probability paths ``x_t = alpha(t) x0 + sigma(t) noise``, t in [0, 1], 0 = data and 1 = noise.

Coefficients are float32, or float64 where ``t`` is. Every path starts at alpha = 1, sigma = 0. ``steps`` is the length
of a discrete path's table, None on a continuous path. ``time_at`` is the inverse of ``log_snr``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.coefficients import at_least_float32, mix
from latentdiff.diffusion.discrete_path import DiscreteVP, LinearDDPM, ScaledLinearDDPM

__all__ = [
    "CosineVP",
    "DiscreteVP",
    "KarrasVE",
    "LinearDDPM",
    "RectifiedFlow",
    "ScaledLinearDDPM",
]


class RectifiedFlow:
    """Straight lines, alpha = 1 - t and sigma = t (rectified flow, arXiv:2209.03003; SD3, arXiv:2403.03206 eq. 13).

    SD3's resolution shift moves t along this path and is no part of it: ``timesteps.Shifted`` for training and
    ``grids.Shifted`` for sampling.
    """

    steps: int | None = None

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = at_least_float32(t)
        return 1 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt."""
        one = torch.ones_like(at_least_float32(t))
        return -one, one

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2): +inf at t = 0, -inf at t = 1."""
        t = at_least_float32(t)
        return 2 * (torch.log1p(-t) - torch.log(t))

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The t of a log-SNR."""
        return torch.sigmoid(-at_least_float32(log_snr) / 2)

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of shape (B, ...) for t (B,)."""
        return mix(self, x0, noise, t)

    def network_time(self, t: Tensor) -> Tensor:
        """What the backbone is told: 1000 t, the range of the sinusoidal embedding (as SD3)."""
        return 1000 * at_least_float32(t)


class CosineVP:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): improved DDPM's cosine (arXiv:2102.09672 eq. 17) with s = 0.

    Its offset s = 0.008 keeps the betas of a table from vanishing near the data. In continuous time it would make
    sigma' infinite at t = 0, and is left out (as in arXiv:2202.00512 and arXiv:2301.11093).
    """

    steps: int | None = None

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = at_least_float32(t)
        return torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)  # both ends exact

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt."""
        alpha, sigma = self.alpha_sigma(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) = -2 log tan(pi t / 2): +inf at t = 0, -inf at t = 1."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (torch.log(alpha) - torch.log(sigma))

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The t of a log-SNR."""
        return 2 / math.pi * torch.atan(torch.exp(-at_least_float32(log_snr) / 2))

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of shape (B, ...) for t (B,)."""
        return mix(self, x0, noise, t)

    def network_time(self, t: Tensor) -> Tensor:
        """What the backbone is told: 1000 t, the range of the sinusoidal embedding."""
        return 1000 * at_least_float32(t)


class KarrasVE:
    """EDM's variance-exploding path: alpha = 1, sigma even in its rho-th root (arXiv:2206.00364 eq. 5, table 1).

    sigma runs from ``sigma_min`` at t = ``FIRST`` to ``sigma_max`` at t = 1, and linearly to 0 below FIRST. Times even
    from 1 to FIRST, with 0 appended, are EDM's sampling grid for any number of steps.
    """

    FIRST = 1e-3
    """The t of sigma_min."""

    steps: int | None = None

    def __init__(self, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0):
        """``sigma_max`` for data of standard deviation of order 1."""
        if not 0 < sigma_min < sigma_max:
            raise InputError(f"KarrasVE: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        if rho < 1:
            raise InputError(f"KarrasVE: expected rho >= 1 (EDM's is 7; larger dwells nearer the data), got {rho}")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._root_min = sigma_min ** (1 / rho)
        self._root_span = sigma_max ** (1 / rho) - self._root_min

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = at_least_float32(t)
        sigma = torch.where(t < self.FIRST, t * (self.sigma_min / self.FIRST), self._root(t) ** self.rho)
        return torch.ones_like(t), sigma

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt; at FIRST those of the law above it."""
        t = at_least_float32(t)
        slope = self._root_span / (1 - self.FIRST)
        above = self.rho * self._root(t) ** (self.rho - 1) * slope
        return torch.zeros_like(t), torch.where(t < self.FIRST, self.sigma_min / self.FIRST, above)

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log sigma: +inf at t = 0, finite at t = 1."""
        return -2 * torch.log(self.alpha_sigma(t)[1])

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The t of a log-SNR; 1 for any below that of sigma_max."""
        sigma = torch.exp(-at_least_float32(log_snr) / 2).clamp(max=self.sigma_max)
        place = (sigma ** (1 / self.rho) - self._root_min) / self._root_span
        above = self.FIRST + (1 - self.FIRST) * place
        return torch.where(sigma < self.sigma_min, sigma * (self.FIRST / self.sigma_min), above)

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of shape (B, ...) for t (B,)."""
        return mix(self, x0, noise, t)

    def network_time(self, t: Tensor) -> Tensor:
        """What the backbone is told: ln(sigma) / 4, with sigma not below sigma_min (EDM's c_noise, table 1)."""
        return torch.log(self.alpha_sigma(t)[1].clamp(min=self.sigma_min)) / 4

    def _root(self, t: Tensor) -> Tensor:
        """sigma^(1 / rho), linear in t from FIRST to 1."""
        place = ((t - self.FIRST) / (1 - self.FIRST)).clamp(min=0)
        return self._root_min + place * self._root_span
