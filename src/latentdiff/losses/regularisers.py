"""What keeps a discriminator from running away: R1 and LeCam, both optional and added to its loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.losses.adversarial import per_sample
from latentdiff.losses.memory import Memory
from latentdiff.nn.precision import at_least_float32


class R1:
    """Gradient penalty on real images, ``weight / 2 |grad D(x)|^2`` (Mescheder et al., arXiv:1801.04406, eq. 9).

    Lazy as in StyleGAN2 (arXiv:1912.04958, section 3.1): taken on every ``every``-th batch, ``every`` times as heavy.
    The gradient is that of the sum over patches, its squared norm a mean over them, so that the weight does not depend
    on the image's size.

    Args:
        weight: gamma of the paper.
        every: batches between penalties.
    """

    def __init__(self, *, weight: float = 10.0, every: int = 16):
        if weight < 0 or every < 1:
            raise InputError(f"R1: expected weight >= 0 and every >= 1, got weight={weight}, every={every}")
        self.weight, self.every = weight, every

    def due(self, batch: int) -> bool:
        return batch % self.every == 0

    def __call__(self, discriminator: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B,), differentiable in the discriminator's weights; never in bfloat16."""
        with torch.autocast(image.device.type, enabled=False):
            image = at_least_float32(image).detach().requires_grad_()
            logits = discriminator(image)
            (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
            patches = logits[0].numel()
            return (0.5 * self.weight * self.every / patches) * gradient.square().flatten(1).sum(1)


class LeCam(Memory):
    """``weight (E |D(x) - a_fake|^2 + E |D(r) - a_real|^2)`` with running means a of the logits (arXiv:2104.03310).

    LeCam regularisation, of use where data are few. The means are those over all ranks; they are in the checkpoint.

    Args:
        weight: lambda of the paper.
        decay: of the running means, per batch.
    """

    def __init__(self, *, weight: float = 1e-3, decay: float = 0.99):
        super().__init__({"real": 0.0, "fake": 0.0, "batches": 0.0})
        if weight < 0 or not 0 <= decay < 1:
            raise InputError(f"LeCam: expected weight >= 0 and decay in [0, 1), got weight={weight}, decay={decay}")
        self.weight, self.decay = weight, decay

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits (B, ...) of images and of reconstructions -> (B,); zero on the first batch, which has no means yet."""
        if self.values["batches"] == 0:
            return 0.0 * per_sample(real)
        away_from_fake = (at_least_float32(real) - self.values["fake"]).square()
        away_from_real = (at_least_float32(fake) - self.values["real"]).square()
        return self.weight * (per_sample(away_from_fake) + per_sample(away_from_real))

    def update(self, real: float, fake: float) -> None:
        """Takes in the mean logits of a global batch, after its penalty has been taken."""
        old, seen = self.values, self.values["batches"]
        decay = min(self.decay, seen / (seen + 1.0))
        self.values = {
            "real": decay * old["real"] + (1.0 - decay) * real,
            "fake": decay * old["fake"] + (1.0 - decay) * fake,
            "batches": seen + 1.0,
        }
