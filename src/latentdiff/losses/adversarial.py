"""Patch-adversarial term of stage one: hinge losses, the phases of the game, the adaptive weight."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def hinge_generator(fake: Tensor) -> Tensor:
    """-E[D(r)] (Lim & Ye, arXiv:1705.02894, eq. 5). Logits of any shape -> scalar."""
    return -fake.float().mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(E[max(0, 1 - D(x))] + E[max(0, 1 + D(r))]) / 2 (arXiv:1705.02894, eq. 4). Logits of any shape -> scalar."""
    return 0.5 * (F.relu(1.0 - real.float()).mean() + F.relu(1.0 + fake.float()).mean())


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor, *, limit: float = 1e4) -> Tensor:
    """``|grad nll| / (|grad gan| + 1e-4)`` at the decoder's last layer (VQGAN, arXiv:2012.09841, eq. 7), float32.

    Both gradients are averaged over the ranks first, so that the weight is that of the global batch.
    A norm that is not finite gives weight 0: the adversary sits this batch out, and its gradient, which 0 does not
    make finite, must be left out by the caller.
    """
    gradients = torch.stack([reconstruction_gradient.float().flatten(), adversarial_gradient.float().flatten()])
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
        self.weight, self.start, self.warmup, self.ramp = weight, start, warmup, ramp

    def discriminator_trains(self, batch: int) -> bool:
        return self.weight > 0 and batch >= self.start

    def generator_weight(self, batch: int) -> float:
        heard = batch - self.start - self.warmup
        if heard < 0:
            return 0.0
        return self.weight * min(1.0, (heard + 1) / (self.ramp + 1))
