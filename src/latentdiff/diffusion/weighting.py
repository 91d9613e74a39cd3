"""Loss weights in the space of the target, as functions of (path, parameterization, t).

A weight w(t) on ``|x0_hat - x0|^2`` is ``w(t) x0_gain(t)^2`` on ``|output - target|^2`` (arXiv:2303.00848). All but
``Unit`` are evaluated at t kept 1e-5 away from both ends, where they have reached their limits and are finite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Parameterization, Path

Weighting = Callable[[Path, Parameterization, Tensor], Tensor]
"""(path, parameterization, t (B,)) -> (B,)."""

MARGIN = 1e-5


class Unit:
    """1: the plain mean squared error of the target (DDPM's simple loss for epsilon, flow matching for velocity)."""

    def __call__(self, path: Path, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.ones_like(path.alpha_sigma(t)[0])


class MinSNR:
    """min(SNR, gamma) on the x0 error (arXiv:2303.09556 section 3).

    That is min(1, gamma / SNR) for epsilon and min(SNR, gamma) / (SNR + 1) for v on a variance-preserving path.
    """

    def __init__(self, *, gamma: float = 5.0):
        self.gamma = _positive("MinSNR: gamma", gamma)

    def __call__(self, path: Path, parameterization: Parameterization, t: Tensor) -> Tensor:
        t = _inside(t)
        return _snr(path, t).clamp(max=self.gamma) * parameterization.x0_gain(path, t) ** 2


class SoftMinSNR:
    """SNR gamma / (SNR + gamma) on the x0 error: MinSNR without its corner (HDiT, arXiv:2401.11605)."""

    def __init__(self, *, gamma: float = 5.0):
        self.gamma = _positive("SoftMinSNR: gamma", gamma)

    def __call__(self, path: Path, parameterization: Parameterization, t: Tensor) -> Tensor:
        t = _inside(t)
        snr = _snr(path, t)
        return self.gamma * snr / (snr + self.gamma) * parameterization.x0_gain(path, t) ** 2


class P2:
    """SNR / (k + SNR)^gamma on the x0 error, 1 / (k + SNR)^gamma for epsilon (arXiv:2204.00227)."""

    def __init__(self, *, gamma: float = 1.0, k: float = 1.0):
        """gamma = 0 is the simple loss; the paper's is 1 or 0.5, with k = 1."""
        if gamma < 0:
            raise InputError(f"P2: gamma must be at least 0 (0 is the simple loss), got {gamma}")
        self.gamma, self.k = gamma, _positive("P2: k", k)

    def __call__(self, path: Path, parameterization: Parameterization, t: Tensor) -> Tensor:
        t = _inside(t)
        snr = _snr(path, t)
        return snr / (self.k + snr) ** self.gamma * parameterization.x0_gain(path, t) ** 2


class Karras:
    """SNR + 1 / sigma_data^2 on the x0 error: EDM's 1 / c_out^2 (arXiv:2206.00364 table 1).

    It is 1 for the Karras parameterization of the same sigma_data, and SNR + 1 with sigma_data = 1, v's plain loss.
    """

    def __init__(self, *, sigma_data: float = 1.0):
        self.sigma_data = _positive("Karras: sigma_data", sigma_data)

    def __call__(self, path: Path, parameterization: Parameterization, t: Tensor) -> Tensor:
        t = _inside(t)
        return (_snr(path, t) + self.sigma_data**-2) * parameterization.x0_gain(path, t) ** 2


class Sigmoid:
    """sigmoid(bias - log-SNR) as w in the weighted loss of arXiv:2303.00848, whose w = 1 is the variational bound.

    That loss is ``1/2 integral of w |noise_hat - noise|^2 d log-SNR``, which with t uniform asks for the weight
    1/2 w SNR (-d log-SNR / dt) on the x0 error, on any path. This w falls as the log-SNR grows, so that the loss is
    the bound of data seen through noise.
    """

    def __init__(self, *, bias: float = 2.0):
        """``bias``: the log-SNR where the weight is 1/2; lower for larger images (arXiv:2410.19324)."""
        self.bias = bias

    def __call__(self, path: Path, parameterization: Parameterization, t: Tensor) -> Tensor:
        t = _inside(t)
        (alpha, sigma), (d_alpha, d_sigma) = path.alpha_sigma(t), path.derivatives(t)
        fall = 2 * (d_sigma / sigma - d_alpha / alpha)  # -d log-SNR / dt
        per_noise = 0.5 * torch.sigmoid(self.bias - path.log_snr(t)) * fall
        return per_noise * (alpha / sigma * parameterization.x0_gain(path, t)) ** 2


def _inside(t: Tensor) -> Tensor:
    return t.clamp(MARGIN, 1 - MARGIN)


def _snr(path: Path, t: Tensor) -> Tensor:
    alpha, sigma = path.alpha_sigma(t)
    return (alpha / sigma) ** 2


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise InputError(f"{name} must be positive, got {value}")
    return value
