"""What stands between encoder and decoder: the distribution of the latent, what the decoder reads of it, its price."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentdiff.diffusion.noise import Draws


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z | image) with independent components, or the point mass at ``mean`` where ``logvar`` is None (VQ, FSQ)."""

    mean: Tensor
    """(B, C, h, w), float32 or float64."""
    logvar: Tensor | None = None
    """(B, C, h, w), in [-30, 20]."""

    @property
    def std(self) -> Tensor:
        """(B, C, h, w); zeros for a point mass."""
        return torch.zeros_like(self.mean) if self.logvar is None else torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, with ``noise`` standard normal of the mean's shape; a point mass gives its mean."""
        return self.mean if self.logvar is None else self.mean + self.std * noise

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) of every component in nats, (B, C, h, w). Raises ValueError for a point mass: infinite."""
        if self.logvar is None:
            raise ValueError("a point mass has no finite divergence from a normal distribution")
        # arXiv:1312.6114, appendix B
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


@dataclass(frozen=True)
class Latent:
    """What one training pass through a bottleneck yields."""

    z: Tensor
    """(B, C, h, w), what the decoder reads: a posterior sample (KL) or quantised with a straight-through gradient."""
    posterior: DiagonalGaussian
    penalty: Tensor
    """(B,), differentiable: a sum or a mean over latent elements, see ``Bottleneck.reduction``."""
    logs: dict[str, Tensor]
    """Detached scalars for the record."""


class Bottleneck(nn.Module):
    """Base of KL, VQ and FSQ.

    Stage two works on ``posterior``'s latents, and ``for_decoder`` belongs to the decoder: a quantiser rounds what
    stage two made (arXiv:2112.10752, appendix G).
    """

    expansion: int = 1
    """Encoder channels per latent channel."""
    reduction: str
    """How ``Latent.penalty`` was reduced: "sum" over latent elements, so that LDM's KL weight 1e-6 goes with a
    likelihood summed over the image's elements; or "mean" over them, which is to be multiplied by the image's element
    count there, so that weight 1 is that of VQGAN, where both are means."""
    channels: int | None = None
    """Latent channels that it is made for; None: any."""
    training_state: tuple[str, ...] = ()
    """Names of the tensors that training alone needs, which published checkpoints do not have."""

    def posterior(self, h: Tensor) -> DiagonalGaussian:
        """Encoder output (B, expansion * C, h, w), after ``quant_conv`` -> distribution of the latent for stage two."""
        raise NotImplementedError

    def forward(self, h: Tensor, noise: Tensor) -> Latent:
        """The training pass; ``noise`` (B, C, h, w) is standard normal and unused where nothing is random."""
        raise NotImplementedError

    def for_decoder(self, z: Tensor) -> Tensor:
        """Latent of stage two (B, C, h, w) -> what the decoder reads."""
        return z

    @torch.no_grad()
    def after_batch(self, draws: Draws | None = None) -> dict[str, Tensor]:
        """To be called on every rank after the optimisers' step of a batch; returns scalars over the global batch.

        ``draws`` are those of this rank's whole part of the batch, all its micro-batches.
        """
        return {}

    def forget_batch(self) -> None:
        """In place of ``after_batch``: what was seen since the last one leaves no trace."""
