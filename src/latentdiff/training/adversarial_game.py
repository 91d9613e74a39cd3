"""The gradients of stage one: autoencoder against discriminator, one forward pass of each per image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentdiff.diffusion.noise import Draws, stable_hash
from latentdiff.losses.adversarial import (
    ADAPTIVE_LIMIT,
    AdversarialLoss,
    AdversarialSchedule,
    accuracy,
    adaptive_weight,
    per_sample,
)
from latentdiff.losses.reconstruction import ReconstructionLoss
from latentdiff.losses.regularisers import R1, LeCam
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.base import Latent
from latentdiff.nn.precision import at_least_float32
from latentdiff.training.parts import images
from latentdiff.training.tally import Tally
from latentdiff.types import Batch

Backward = Callable[[Tensor, bool], None]
"""Runs the backward pass of a scalar; True on the last of a batch, after which gradients are complete."""


@dataclass
class Boundary:
    """What is known at a reconstruction r (n, C, H, W) of n of a batch's N samples; losses are sums over n / N."""

    nll: Tensor
    """d nll / d r."""
    logvar: Tensor | None
    """d nll / d log-scale, where that learns."""
    terms: dict[str, Tensor]
    """Values (n,) for the record."""
    fake_logits: Tensor | None = None
    gan: Tensor | None = None
    """d gan / d r, where the adversary is heard."""
    at_last: Tensor | None = None
    """(2, ...): gradients of nll and gan at the decoder's last layer."""


class AdversarialGame:
    """Both players' gradients on a batch.

    Reconstruction and adversarial term are differentiated once, at the reconstruction; the adaptive weight and the
    autoencoder's gradient both follow from there, as does the discriminator's, in one backward pass. Unlike LDM's two
    passes the discriminator therefore sees the reconstruction made before this batch's update.

    With micro-batches the adaptive weight is still that of the whole batch: where the adversary is heard, all but the
    first are reconstructed once more beforehand, without a graph below the last layer (a third more time, no memory).
    """

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        reconstruction: ReconstructionLoss,
        discriminator: nn.Module | None,
        schedule: AdversarialSchedule,
        loss: AdversarialLoss,
        r1: R1 | None,
        lecam: LeCam | None,
        bottleneck_weight: float,
        seed: int,
    ):
        self.autoencoder, self.reconstruction, self.discriminator = autoencoder, reconstruction, discriminator
        self.schedule, self.loss, self.r1, self.lecam = schedule, loss, r1, lecam
        self.bottleneck_weight, self.seed = bottleneck_weight, seed

    def discriminator_trains(self, number: int) -> bool:
        return self.discriminator is not None and self.schedule.discriminator_trains(number)

    def heard(self, number: int) -> float:
        """Weight of the adversary in batch ``number``, before the adaptive one."""
        return 0.0 if self.discriminator is None else self.schedule.generator_weight(number)

    def adaptive_limit(self, elements: int) -> float:
        """1e4 beside a likelihood that is reduced as in the papers: a sum over elements with KL, a mean with VQ."""
        return ADAPTIVE_LIMIT * (elements if self.autoencoder.bottleneck.reduction == "mean" else 1)

    def play(self, batch: Batch, number: int, tally: Tally, backward: Backward, micro_batch: int | None) -> None:
        """Calls ``backward`` once per micro-batch, so that the gradients are those of the mean loss over ``batch``.

        ``tally`` gets the terms nll (per image element), perceptual, penalty, gan and discriminator of every sample,
        with what explains them.
        """
        heard, share = self.heard(number), 1.0 / len(batch)
        parts = batch.cut(micro_batch)
        ahead = [self._rehearse(part, number, share) for part in parts[1:]] if heard else []
        weight = None
        for i, part in enumerate(parts):
            image = images(part, like=self.autoencoder.last_layer)
            fake, latent = self._reconstruct(image, part, number)
            boundary = ahead[i - 1] if ahead and i else self._boundary(image, fake, share, bool(heard))
            if heard and i == 0:
                sums = sum(b.at_last for b in (boundary, *ahead))
                weight = adaptive_weight(sums[0], sums[1], limit=self.adaptive_limit(image[0].numel()))
                tally.note("adaptive_weight", weight)
            terms = boundary.terms
            loss = self._through_autoencoder(fake, boundary, None if weight is None else heard * weight)
            loss = loss + share * (self.bottleneck_weight * self._penalty(latent, image, terms)).sum()
            loss = loss + share * self._discriminator_loss(image, fake, boundary, number, terms)
            tally.add(terms)
            for name, value in latent.logs.items():
                tally.note(name, value * (share * len(part)))
            backward(loss, i == len(parts) - 1)

    def _reconstruct(self, image: Tensor, part: Batch, number: int) -> tuple[Tensor, Latent]:
        """Reconstruction, float32 or wider, and latent. Dropout depends on the samples too: it can be repeated."""
        draws = Draws.of(part, seed=self.seed, number=number, device=image.device)
        noise = draws.normal("posterior", self.autoencoder.latent_shape(*image.shape[-2:]))
        torch.manual_seed(stable_hash(self.seed, number, "dropout", part.start))
        fake, latent = self.autoencoder(image, noise)
        return at_least_float32(fake), latent

    def _rehearse(self, part: Batch, number: int, share: float) -> Boundary:
        """The boundary of a micro-batch whose turn comes later, without a graph below the last layer."""
        image = images(part, like=self.autoencoder.last_layer)
        bottleneck = self.autoencoder.bottleneck.eval()  # a codebook counts what it sees in training mode
        with torch.no_grad(), self.autoencoder.decoder.conv_out.register_forward_pre_hook(_record):
            fake, _ = self._reconstruct(image, part, number)
        bottleneck.train()
        boundary = self._boundary(image, fake, share, True)
        boundary.fake_logits = None  # would hold the discriminator's graph
        return boundary

    def _boundary(self, image: Tensor, fake: Tensor, share: float, heard: bool) -> Boundary:
        leaf = fake.detach().requires_grad_()
        terms = self.reconstruction.terms(leaf, image)
        learned = [self.reconstruction.logvar] if self.reconstruction.logvar.requires_grad else []
        nll, *logvar = torch.autograd.grad(share * terms["nll"].sum(), [leaf, *learned])
        terms = {name: value.detach() for name, value in terms.items()}
        terms["nll"] = terms["nll"] / image[0].numel()
        boundary = Boundary(nll, logvar[0] if logvar else None, terms)
        if heard:
            boundary.fake_logits = self.discriminator(leaf)
            terms["gan"] = self.loss.generator(boundary.fake_logits)
            (boundary.gan,) = torch.autograd.grad(share * terms["gan"].sum(), leaf, retain_graph=True)
            last = self.autoencoder.last_layer  # looked up before a backward pass, after which it may be sharded again
            at_last = (
                torch.autograd.grad(fake, last, gradient, retain_graph=True)[0] for gradient in (nll, boundary.gan)
            )
            boundary.at_last = torch.stack([at_least_float32(gradient) for gradient in at_last])
        return boundary

    def _through_autoencoder(self, fake: Tensor, boundary: Boundary, weight: Tensor | None) -> Tensor:
        """A scalar whose gradient is that of nll + weight * gan in all weights of the autoencoder and the log-scale."""
        gradient = boundary.nll
        if weight is not None:
            gan = torch.where(weight > 0, boundary.gan, torch.zeros_like(boundary.gan))  # 0 * inf is not 0
            gradient = gradient + weight.to(gradient.dtype) * gan
        scalar = (fake * gradient).sum()
        return scalar if boundary.logvar is None else scalar + self.reconstruction.logvar * boundary.logvar

    def _penalty(self, latent: Latent, image: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """(n,), on the scale of a likelihood that is summed over the image's elements."""
        terms["penalty"] = latent.penalty
        return latent.penalty * image[0].numel() if self.autoencoder.bottleneck.reduction == "mean" else latent.penalty

    def _discriminator_loss(
        self, image: Tensor, fake: Tensor, boundary: Boundary, number: int, terms: dict[str, Tensor]
    ) -> Tensor:
        """Sum over the samples of loss and regularisers; the reconstruction is judged once for both players."""
        if self.discriminator is None:
            return image.new_zeros(())
        if not self.discriminator_trains(number):
            return 0.0 * sum(p.sum() for p in self.discriminator.parameters())  # DDP waits for every parameter
        real = self.discriminator(image)
        judged = boundary.fake_logits
        judged = self.discriminator(fake.detach()) if judged is None else judged
        loss = self.loss.discriminator(real, judged)
        if self.lecam is not None:
            terms["lecam"] = self.lecam(real, judged)
            loss = loss + terms["lecam"]
        if self.r1 is not None and self.r1.due(number):
            terms["r1"] = self.r1(self.discriminator, image)
            loss = loss + terms["r1"]
        with torch.no_grad():
            terms |= {
                "discriminator": loss,
                "discriminator_accuracy": accuracy(real, judged),
                "logits_real": per_sample(real),
                "logits_fake": per_sample(judged),
            }
        return loss.sum()


def _record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Before a layer's forward pass: from here on gradients are wanted."""
    torch.set_grad_enabled(True)
