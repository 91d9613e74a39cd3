"""What stands between encoder and decoder: the distribution of the latent and its price."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DiagonalGaussian:
    """Posterior q(z | image) with independent components."""

    mean: Tensor
    """float32 (B, C, h, w)."""
    logvar: Tensor
    """float32 (B, C, h, w), in [-30, 20]."""

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, with ``noise`` standard normal of the mean's shape."""
        return self.mean + self.std * noise


class KL(nn.Module):
    """Gaussian bottleneck regularised towards the standard normal (arXiv:1312.6114; arXiv:2112.10752, "KL-reg.")."""

    expansion: int = 2
    """Encoder channels per latent channel: mean and log-variance."""

    def forward(self, moments: Tensor) -> DiagonalGaussian:
        """moments (B, 2C, h, w) -> posterior, log-variance clamped to [-30, 20]."""
        mean, logvar = moments.float().chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30.0, 20.0))

    def kl(self, posterior: DiagonalGaussian) -> Tensor:
        """KL(posterior || N(0, 1)) summed over channels and positions -> float32 (B,)."""
        # arXiv:1312.6114, appendix B
        terms = posterior.mean.square() + posterior.logvar.exp() - 1.0 - posterior.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))
