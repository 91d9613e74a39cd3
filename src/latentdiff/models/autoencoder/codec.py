"""The frozen stage one as stage two sees it: whitened latents in, whitened latents out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.nn.freeze import freeze


class LatentCodec(nn.Module):
    """A frozen autoencoder with per-channel whitening z = (latent - mean) / std, ``mean`` and ``std`` of shape (C,).

    The statistics are those of posterior samples over the training data, so z has mean 0 and variance 1 per channel.
    SD's single scale factor s is mean 0, std 1 / s. Frozen, and absent from its parents' checkpoints.
    """

    def __init__(
        self, *, autoencoder: Autoencoder, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.channels = autoencoder.latent_channels
        self.factor = autoencoder.factor
        mean, std = (torch.as_tensor(s, dtype=torch.float32).detach().clone() for s in (mean, std))
        for name, statistic in (("mean", mean), ("std", std)):
            if statistic.shape != (self.channels,):
                raise InputError(
                    f"codec: {name} must hold one value per latent channel, shape ({self.channels},), "
                    f"got {tuple(statistic.shape)}; take it from the same checkpoint as the autoencoder"
                )
        if not (std.device.type == "meta" or bool((std > 0).all())):
            raise InputError(f"codec: every std must be positive, got {std.tolist()}")
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))
        freeze(self)

    @torch.no_grad()
    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, 3, H, W) in [-1, 1] -> mean and standard deviation of the raw posterior, float32 (B, C, h, w).

        Raises InputError where H or W is not a multiple of ``factor``.
        """
        posterior = self.autoencoder.encode(image)
        return posterior.mean, posterior.std

    def draw(self, moments: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
        """Whitened sample of the posterior with raw ``moments``, float32; zero noise gives its mean."""
        mean, std = moments
        return self.whiten(mean.float() + std.float() * noise)

    def encode(self, image: Tensor) -> Tensor:
        """Whitened posterior mean."""
        return self.whiten(self.moments(image)[0])

    def decode(self, z: Tensor) -> Tensor:
        """Whitened latent -> float32 image in [-1, 1] (clamped)."""
        return self.autoencoder.decode(self.unwhiten(z)).float().clamp(-1.0, 1.0)

    def whiten(self, latent: Tensor) -> Tensor:
        return (latent.float() - self.mean) / self.std

    def unwhiten(self, z: Tensor) -> Tensor:
        return z.float() * self.std + self.mean
