"""Reconstruction term of stage one: likelihood of the image under a Laplace-like density with learned scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentdiff.nn.precision import at_least_float32


class ReconstructionLoss(nn.Module):
    """Negative log-likelihood ``sum((l1 |x - r| + l2 (x - r)^2 + w d(x, r)) / exp(s) + s)`` with log-scale s.

    Reductions are those of LDM (arXiv:2112.10752, section G): **summed** over C, H and W, so that a KL weight of 1e-6
    means here what it means in the paper. The perceptual distance d is one value per sample, spread over all elements.
    With the rest fixed, s is best at the logarithm of the mean over elements of what is divided.

    Args:
        perceptual: (reconstruction, image) -> (B,), or None. Its network runs under autocast, as the others do.
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
        """(B, C, H, W) twice, in [-1, 1] -> (B,), in float32 or wider."""
        return self.terms(reconstruction, image)["nll"]

    def terms(self, reconstruction: Tensor, image: Tensor) -> dict[str, Tensor]:
        """ "nll" as ``forward`` gives it, and "perceptual", the bare distance d, where there is one; (B,) each."""
        reconstruction, image = at_least_float32(reconstruction), at_least_float32(image)
        terms = {}
        if self.perceptual is not None:
            terms["perceptual"] = at_least_float32(self.perceptual(reconstruction, image))
        with torch.autocast(image.device.type, enabled=False):
            per_sample = self._pixel(reconstruction - image)
            elements = image[0].numel()
            if self.perceptual is not None:
                per_sample = per_sample + self.perceptual_weight * elements * terms["perceptual"]
            logvar = self.logvar.clamp(-30.0, 20.0)
            terms["nll"] = per_sample / logvar.exp() + elements * logvar
        return terms

    def _pixel(self, difference: Tensor) -> Tensor:
        """Weighted errors summed over the elements, (B,); a weight of 0 costs nothing."""
        total = difference.new_zeros(len(difference))
        if self.l1:
            total = total + self.l1 * difference.abs().flatten(1).sum(1)
        if self.l2:
            total = total + self.l2 * difference.square().flatten(1).sum(1)
        return total
