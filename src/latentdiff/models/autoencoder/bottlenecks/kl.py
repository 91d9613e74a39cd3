"""The Gaussian bottleneck of a variational autoencoder."""

from __future__ import annotations

from torch import Tensor

from latentdiff.models.autoencoder.bottlenecks.base import Bottleneck, DiagonalGaussian, Latent
from latentdiff.nn.precision import at_least_float32


class KL(Bottleneck):
    """A normal posterior per latent element, drawn towards the standard normal (arXiv:2112.10752, "KL-reg.")."""

    expansion = 2  # mean and log-variance
    reduction = "sum"

    def posterior(self, h: Tensor) -> DiagonalGaussian:
        """h (B, 2C, h, w) -> posterior, log-variance clamped to [-30, 20]."""
        mean, logvar = at_least_float32(h).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30.0, 20.0))

    def forward(self, h: Tensor, noise: Tensor) -> Latent:
        """A sample of the posterior; the penalty is the divergence in nats, summed over channels and positions."""
        posterior = self.posterior(h)
        penalty = posterior.kl().sum((1, 2, 3))
        return Latent(posterior.sample(noise), posterior, penalty, {"kl": penalty.detach().mean()})
