from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


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


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
