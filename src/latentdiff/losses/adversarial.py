"""Patch-adversarial term of stage one: interchangeable losses, the phases of the game, the adaptive weight.

Logits are (B, ...), high for real, one per patch; every loss is a mean over patches, one float32 (float64 for float64)
value per sample.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.nn.precision import at_least_float32

ADAPTIVE_LIMIT = 1e4
"""Largest adaptive weight, as in VQGAN and LDM."""


class AdversarialLoss:
    """What both players minimise."""

    def generator(self, fake: Tensor) -> Tensor:
        """Logits of reconstructions -> (B,)."""
        raise NotImplementedError

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of as many images and reconstructions -> (B,)."""
        raise NotImplementedError


class Hinge(AdversarialLoss):
    """LDM's choice (Lim & Ye, arXiv:1705.02894, eqs. 4 and 5), the discriminator's halved."""

    def generator(self, fake: Tensor) -> Tensor:
        """-E[D(r)]"""
        return -per_sample(fake)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """(E[max(0, 1 - D(x))] + E[max(0, 1 + D(r))]) / 2"""
        return 0.5 * (
            per_sample(F.relu(1.0 - at_least_float32(real))) + per_sample(F.relu(1.0 + at_least_float32(fake)))
        )


class NonSaturating(AdversarialLoss):
    """Cross entropy, the generator maximising log D(r) (Goodfellow et al., arXiv:1406.2661, section 3)."""

    def generator(self, fake: Tensor) -> Tensor:
        """-E[log sigmoid D(r)]"""
        return per_sample(F.softplus(-at_least_float32(fake)))

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """-(E[log sigmoid D(x)] + E[log(1 - sigmoid D(r))]) / 2"""
        return 0.5 * (per_sample(F.softplus(-at_least_float32(real))) + per_sample(F.softplus(at_least_float32(fake))))


class Vanilla(NonSaturating):
    """VQGAN's ``vanilla``: the discriminator's cross entropy, but the generator raises the logits themselves."""

    def generator(self, fake: Tensor) -> Tensor:
        """-E[D(r)]"""
        return -per_sample(fake)


def per_sample(values: Tensor) -> Tensor:
    """(B, ...) -> mean of each sample, (B,), float32 or wider."""
    return at_least_float32(values).reshape(len(values), -1).mean(1)


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of patches on the right side of 0, (B,); a logit of exactly 0 counts half."""
    return 0.5 + 0.25 * (per_sample(at_least_float32(real).sign()) - per_sample(at_least_float32(fake).sign()))


def adaptive_weight(
    reconstruction_gradient: Tensor, adversarial_gradient: Tensor, *, limit: float = ADAPTIVE_LIMIT
) -> Tensor:
    """``|grad nll| / (|grad gan| + 1e-4)`` at the decoder's last layer (VQGAN, arXiv:2012.09841, eq. 7), >= float32.

    Both gradients are averaged over the ranks first, so that the weight is that of the global batch.
    A norm that is not finite gives weight 0: the adversary sits this batch out, and its gradient, which 0 does not
    make finite, must be left out by the caller.
    """
    gradients = torch.stack(
        [at_least_float32(reconstruction_gradient).flatten(), at_least_float32(adversarial_gradient).flatten()]
    )
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradients)
        gradients = gradients / dist.get_world_size()
    nll, gan = gradients.norm(dim=1)
    weight = (nll / (gan + 1e-4)).clamp(0.0, limit)
    return torch.where(torch.isfinite(nll) & torch.isfinite(gan), weight, torch.zeros_like(weight))


class AdversarialSchedule:
    """When the discriminator trains and how much the autoencoder listens to it, in batches since training began.

    Three phases: the autoencoder alone; from ``start`` the discriminator trains too, unheard for ``warmup`` batches;
    then its weight ramps up linearly over ``ramp`` batches. Counts batches, never optimiser steps.

    Args:
        weight: final weight, multiplied by the adaptive weight (0.5 in LDM).
        start: batch at which the discriminator begins to train.
        warmup: batches that it trains before the autoencoder sees it.
        ramp: batches over which its weight grows to ``weight``.
    """

    def __init__(self, *, weight: float = 0.5, start: int = 50_000, warmup: int = 0, ramp: int = 0):
        if min(weight, start, warmup, ramp) < 0:
            raise InputError(
                "AdversarialSchedule: expected weight, start, warmup and ramp of at least 0; "
                f"got weight={weight}, start={start}, warmup={warmup}, ramp={ramp}"
            )
        self.weight, self.start, self.warmup, self.ramp = weight, start, warmup, ramp

    def discriminator_trains(self, batch: int) -> bool:
        return self.weight > 0 and batch >= self.start

    def generator_weight(self, batch: int) -> float:
        heard = batch - self.start - self.warmup
        if heard < 0:
            return 0.0
        return self.weight * min(1.0, (heard + 1) / (self.ramp + 1))
