"""Reconstruction term of stage one: likelihood of the image under a Laplace-like density with learned scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReconstructionLoss(nn.Module):
    """Negative log-likelihood ``sum((l1 |x - r| + l2 (x - r)^2 + w d(x, r)) / exp(s) + s)`` with log-scale s.

    Reductions are those of LDM (arXiv:2112.10752, section G): **summed** over C, H and W, so that a KL weight of 1e-6
    means here what it means in the paper. The perceptual distance d is one value per sample, spread over all elements.

    Args:
        perceptual: (reconstruction, image) -> (B,), or None.
        l1: weight of the absolute error.
        l2: weight of the squared error.
        perceptual_weight: weight w of the perceptual distance.
        learn_logvar: train the log-scale s (one scalar); otherwise it stays at 0.
    """

    def __init__(
        self,
        *,
        perceptual: nn.Module | None,
        l1: float = 1.0,
        l2: float = 0.0,
        perceptual_weight: float = 1.0,
        learn_logvar: bool = False,
    ):
        super().__init__()
        self.perceptual = perceptual
        self.l1, self.l2, self.perceptual_weight = l1, l2, perceptual_weight
        self.logvar = nn.Parameter(torch.zeros(()), requires_grad=learn_logvar)

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """(B, 3, H, W) twice, in [-1, 1] -> (B,), in float32."""
        with torch.autocast(image.device.type, enabled=False):
            difference = reconstruction.float() - image.float()
            distance = self.l1 * difference.abs() + self.l2 * difference.square()
            per_sample = distance.flatten(1).sum(1)
            elements = image[0].numel()
            if self.perceptual is not None:
                per_sample = per_sample + self.perceptual_weight * elements * self.perceptual(reconstruction, image)
            logvar = self.logvar.clamp(-30.0, 20.0)
            return per_sample / logvar.exp() + elements * logvar
