from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.types import Conditioning, Parameterization, Path


@dataclass
class Gaussian:
    """Data N(mean, std^2) in every coordinate: the posterior mean and the probability flow are known in closed form."""

    mean: float = 0.7
    std: float = 0.4

    def denoise(self, path, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t] = mean + alpha std^2 / (alpha^2 std^2 + sigma^2) (x_t - alpha mean)."""
        alpha, sigma = (c.view(-1, *[1] * (x.ndim - 1)) for c in path.alpha_sigma(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def flow(self, path, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """x carried from time ``start`` to ``end``: (x_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant."""
        (a0, s0), (a1, s1) = path.alpha_sigma(start), path.alpha_sigma(end)
        width = ((a1 * self.std) ** 2 + s1**2).sqrt() / ((a0 * self.std) ** 2 + s0**2).sqrt()
        return a1 * self.mean + width * (x - a0 * self.mean)

    def denoiser(self, path: Path, parameterization: Parameterization) -> Denoiser:
        """A denoiser whose output means E[x0 | x_t] exactly."""
        return _Exact(self, path, parameterization)


class _Exact(Denoiser):
    def __init__(self, data: Gaussian, path: Path, parameterization: Parameterization):
        super().__init__(backbone=nn.Identity(), path=path, parameterization=parameterization)
        self.data = data

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        alpha, sigma = (c.view(-1, *[1] * (x_t.ndim - 1)) for c in self.path.alpha_sigma(t))
        x0_hat = self.data.denoise(self.path, x_t, t)
        return self.parameterization.target(x0_hat, (x_t - alpha * x0_hat) / sigma, self.path, t)


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@dataclass
class TwoModes:
    """One-dimensional data, an even mixture of N(-spread, std^2) and N(spread, std^2), shifted by ``shift``."""

    spread: float = 0.9
    std: float = 0.35
    shift: float = 0.2

    @property
    def mean(self) -> float:
        return self.shift

    @property
    def variance(self) -> float:
        return self.spread**2 + self.std**2

    def denoise(self, path, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t]: the modes' own posterior means, weighted by how likely each mode is."""
        alpha, sigma = (c.view(-1, *[1] * (x.ndim - 1)) for c in path.alpha_sigma(t))
        width = (alpha * self.std) ** 2 + sigma**2
        apart = x - alpha * self.shift
        tilt = torch.tanh(alpha * self.spread * apart / width)
        return self.shift + tilt * self.spread * sigma**2 / width + alpha * self.std**2 / width * apart

    def flow(self, path, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """x carried along the probability flow, which in one dimension keeps quantiles; found by bisection."""
        quantile, low, high = self._below(path, x, start), torch.full_like(x, -1e3), torch.full_like(x, 1e3)
        for _ in range(80):
            middle = (low + high) / 2
            under = self._below(path, middle, end) < quantile
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2

    def _below(self, path, x: Tensor, t: Tensor) -> Tensor:
        """The distribution function at time t."""
        alpha, sigma = path.alpha_sigma(t)
        width = ((alpha * self.std) ** 2 + sigma**2).sqrt()
        modes = [alpha * (self.shift + sign * self.spread) for sign in (-1, 1)]
        return sum(torch.special.ndtr((x - mode) / width) for mode in modes) / 2


@pytest.fixture
def two_modes() -> TwoModes:
    return TwoModes()
