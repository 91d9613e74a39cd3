"""The frozen stage one as stage two sees it: whitened latents in, whitened latents out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.nn.freeze import freeze
from latentdiff.nn.precision import at_least_float32


class LatentCodec(nn.Module):
    """A frozen autoencoder with per-channel whitening z = (latent - mean) / std.

    ``mean`` and ``std``: shape (C,), or one number for all channels. They are those of posterior samples over the
    training data, so z has mean 0 and variance 1 per channel. SD's single scale factor s is mean 0, std 1 / s; the
    scale s and shift m of SD3 and FLUX are mean m, std 1 / s. Where the autoencoder quantises, latents are taken before
    the quantiser and ``decode`` applies it. Frozen, and absent from its parents' checkpoints.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        mean: Tensor | Sequence[float] | float,
        std: Tensor | Sequence[float] | float,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.channels = autoencoder.latent_channels
        self.factor = autoencoder.factor
        mean, std = (torch.as_tensor(s, dtype=torch.float32).detach().clone() for s in (mean, std))
        mean, std = (s.repeat(self.channels) if s.ndim == 0 else s for s in (mean, std))
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
        """Image (B, in_channels, H, W) in [-1, 1] -> mean and std of the raw posterior, (B, C, h, w).

        The std is zero where the autoencoder quantises. Raises InputError where H or W is not a multiple of ``factor``.
        """
        posterior = self.autoencoder.encode(image)
        return posterior.mean, posterior.std

    def draw(self, moments: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
        """Whitened sample of the posterior with raw ``moments``; zero noise gives its mean."""
        mean, std = moments
        return self.whiten(at_least_float32(mean) + at_least_float32(std) * noise)

    def encode(self, image: Tensor) -> Tensor:
        """Whitened posterior mean."""
        return self.whiten(self.moments(image)[0])

    def decode(self, z: Tensor) -> Tensor:
        """Whitened latent -> image in [-1, 1] (clamped), at least float32."""
        return at_least_float32(self.autoencoder.decode(self.unwhiten(z))).clamp(-1.0, 1.0)

    def whiten(self, latent: Tensor) -> Tensor:
        return (at_least_float32(latent) - self.mean) / self.std

    def unwhiten(self, z: Tensor) -> Tensor:
        return at_least_float32(z) * self.std + self.mean
