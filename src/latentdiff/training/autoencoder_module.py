"""Stage one: the autoencoder and its discriminator, both updated on every batch."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from latentdiff.diffusion.noise import Draws
from latentdiff.losses.adversarial import (
    AdversarialSchedule,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
)
from latentdiff.losses.reconstruction import ReconstructionLoss
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.training.counters import Counters, continue_run
from latentdiff.training.ema import Ema
from latentdiff.training.optim import set_learning_rate
from latentdiff.types import Batch


class AutoencoderModule(pl.LightningModule):
    """Trains ``autoencoder`` on reconstruction + perceptual + patch-adversarial + KL loss (LDM, arXiv:2112.10752).

    One forward pass of the autoencoder per batch. The gradients of the reconstruction and of the adversarial term are
    taken once, at the reconstruction; the adaptive weight and the final gradient both follow from them. Unlike LDM's
    two passes, the discriminator therefore sees the reconstruction made before this batch's update.

    Args:
        autoencoder: what is trained.
        reconstruction: per-sample negative log-likelihood, summed over elements.
        discriminator: (B, 3, H, W) -> logits, or None to train without an adversary.
        adversarial: when and how strongly the adversary acts.
        optimizer: named parameters -> optimiser, for the autoencoder.
        discriminator_optimizer: the same for the discriminator.
        schedule: batch number -> learning-rate factor, for both.
        kl_weight: weight of the KL term, summed over latent elements (1e-6 in LDM).
        ema_decay: decay of the averaged weights.
        gradient_clip: largest gradient norm of the autoencoder.
        statistics_images: training images over which the latents' mean and standard deviation are taken.
        seed: of every random draw.
    """

    kind = "autoencoder"

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        reconstruction: ReconstructionLoss,
        discriminator: nn.Module | None,
        adversarial: AdversarialSchedule,
        optimizer: Callable[..., Optimizer],
        discriminator_optimizer: Callable[..., Optimizer],
        schedule: Callable[[int], float],
        kl_weight: float = 1e-6,
        ema_decay: float = 0.999,
        gradient_clip: float = 1.0,
        statistics_images: int = 2048,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.autoencoder = autoencoder
        self.reconstruction = reconstruction
        self.discriminator = discriminator
        self.adversarial = adversarial
        self.optimizer, self.discriminator_optimizer, self.schedule = optimizer, discriminator_optimizer, schedule
        self.kl_weight, self.gradient_clip, self.seed = kl_weight, gradient_clip, seed
        self.statistics_images = statistics_images
        self.ema = Ema(autoencoder, decay=ema_decay)
        self.register_buffer("latent_mean", torch.zeros(autoencoder.latent_channels))
        self.register_buffer("latent_std", torch.ones(autoencoder.latent_channels))
        self.counters = Counters()

    @property
    def latent(self) -> dict[str, int]:
        return {"channels": self.autoencoder.latent_channels, "factor": self.autoencoder.factor}

    def configure_optimizers(self) -> list[Optimizer]:
        parts = nn.ModuleDict({"autoencoder": self.autoencoder, "reconstruction": self.reconstruction})
        optimizers = [self.optimizer([(name, p) for name, p in parts.named_parameters() if p.requires_grad])]
        if self.discriminator is not None:
            optimizers.append(self.discriminator_optimizer(self.discriminator.named_parameters()))
        return optimizers

    def training_step(self, batch: Batch, batch_index: int) -> None:
        number = self.counters.batches_seen
        image = batch.image.float() / 127.5 - 1.0
        logs: dict[str, Tensor | float] = {}
        fake, loss = self._autoencoder_loss(image, self._draws(batch), number, logs)
        loss = loss + self._discriminator_loss(image, fake.detach(), number, logs)
        self._update(loss, number, logs)
        self.ema.update(self.autoencoder)
        self.counters.advance(batch)
        self.log("train/nll", logs.pop("nll"), prog_bar=True, logger=False, batch_size=len(batch))
        self.log_dict({f"train/{k}": v for k, v in logs.items()}, logger=False, batch_size=len(batch))

    def _update(self, loss: Tensor, number: int, logs: dict) -> None:
        """One backward pass: no gradient of either loss reaches the other's parameters."""
        optimizers = self.optimizers()
        first, *second = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in (first, *second):
            set_learning_rate(optimizer.optimizer, self.schedule(number))
            optimizer.zero_grad()
        logs["lr"] = first.param_groups[0]["lr"]
        self.manual_backward(loss)
        logs["grad_norm"] = nn.utils.clip_grad_norm_(self.autoencoder.parameters(), self.gradient_clip)
        first.step()
        if self.adversarial.discriminator_trains(number):
            for optimizer in second:
                optimizer.step()

    def _autoencoder_loss(self, image: Tensor, draws: Draws, number: int, logs: dict) -> tuple[Tensor, Tensor]:
        """Reconstruction and a scalar whose gradients are those of the weighted sum of all terms."""
        posterior = self.autoencoder.encode(image)
        noise = draws.normal("posterior", tuple(posterior.mean.shape[1:]))
        fake = self.autoencoder.decode(posterior.mean + posterior.std * noise)
        nll = self.reconstruction(fake, image).mean()
        kl = self.autoencoder.bottleneck.kl(posterior).mean()
        at_fake, at_logvar = self._boundary_gradient(nll, fake, number, logs)
        surrogate = (fake * at_fake).sum() + self.kl_weight * kl
        if at_logvar is not None:
            surrogate = surrogate + self.reconstruction.logvar * at_logvar
        logs |= {"nll": nll.detach() / image[0].numel(), "kl": kl.detach()}
        return fake, surrogate

    def _boundary_gradient(self, nll: Tensor, fake: Tensor, number: int, logs: dict) -> tuple[Tensor, Tensor | None]:
        """Gradient of nll + adversarial term at the reconstruction, and that of nll at its log-scale if it learns."""
        logvar = self.reconstruction.logvar
        learned = [logvar] if logvar.requires_grad else []
        at_fake, *at_logvar = torch.autograd.grad(nll, [fake, *learned], retain_graph=True)
        scale = at_logvar[0] if at_logvar else None
        heard = 0.0 if self.discriminator is None else self.adversarial.generator_weight(number)
        if heard == 0.0:
            return at_fake, scale
        leaf = fake.detach().requires_grad_()
        gan = hinge_generator(_without_gradients(self.discriminator, leaf))
        (gan_at_fake,) = torch.autograd.grad(gan, leaf)
        last = self.autoencoder.last_layer
        (nll_at_last,) = torch.autograd.grad(fake, last, at_fake, retain_graph=True)
        (gan_at_last,) = torch.autograd.grad(fake, last, gan_at_fake, retain_graph=True)
        weight = heard * adaptive_weight(nll_at_last, gan_at_last)
        logs |= {"gan": gan.detach(), "adversarial_weight": weight}
        gan_at_fake = torch.where(weight > 0, gan_at_fake, torch.zeros_like(gan_at_fake))  # 0 * inf is not 0
        return at_fake + weight.to(at_fake.dtype) * gan_at_fake, scale

    def _discriminator_loss(self, image: Tensor, fake: Tensor, number: int, logs: dict) -> Tensor:
        """Hinge loss on the reconstruction that the autoencoder made before its update."""
        if self.discriminator is None:
            return image.new_zeros(())
        if not self.adversarial.discriminator_trains(number):
            return 0.0 * sum(p.sum() for p in self.discriminator.parameters())  # DDP waits for every parameter
        real_logits, fake_logits = self.discriminator(torch.cat([image, fake.float()])).chunk(2)
        loss = hinge_discriminator(real_logits, fake_logits)
        logs |= {
            "discriminator": loss.detach(),
            "discriminator_accuracy": ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2,
            "logits_real": real_logits.detach().mean(),
            "logits_fake": fake_logits.detach().mean(),
        }
        return loss

    def _draws(self, batch: Batch) -> Draws:
        return Draws(
            seed=self.seed,
            number=self.counters.batches_seen,
            start=batch.start,
            count=len(batch),
            total=batch.global_size,
            device=self.device,
        )

    def on_train_start(self) -> None:
        continue_run(self.trainer, self.counters)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.counters = Counters(**checkpoint["latentdiff"]["counters"])

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_index: int) -> None:
        image = batch.image.float() / 127.5 - 1.0
        posterior = self.ema.model.encode(image)
        reconstruction = self.ema.model.decode(posterior.mean).float().clamp(-1.0, 1.0)
        error = ((reconstruction - image) / 2).square().flatten(1).mean(1).clamp_min(1e-10)
        psnr = -10.0 * error.log10()
        values = {"val/psnr": psnr.mean(), "val/kl": self.ema.model.bottleneck.kl(posterior).mean()}
        self.log_dict(values, logger=False, batch_size=len(batch), sync_dist=True, on_epoch=True, prog_bar=True)

    @torch.no_grad()
    def measure_latents(self) -> None:
        """Per-channel mean and std of the averaged encoder's latents over training images of all ranks.

        The variance is that of a draw: that of the posterior means plus the posterior variance.
        """
        channels = self.autoencoder.latent_channels
        sums = torch.zeros(3, channels, dtype=torch.float64, device=self.device)
        for batch in self.trainer.datamodule.statistics_batches(self.statistics_images):
            posterior = self.ema.model.encode(batch.image.to(self.device).float() / 127.5 - 1.0)
            mean, std = posterior.mean.double(), posterior.std.double()
            sums[0] += mean.sum((0, 2, 3))
            sums[1] += (mean.square() + std.square()).sum((0, 2, 3))
            sums[2] += mean[:, 0].numel()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        mean = sums[0] / sums[2]
        self.latent_mean.copy_(mean)
        self.latent_std.copy_((sums[1] / sums[2] - mean.square()).clamp_min(1e-12).sqrt())


def _without_gradients(module: nn.Module, x: Tensor) -> Tensor:
    """module(x) whose graph reaches x but none of the module's parameters."""
    detached = {name: p.detach() for name, p in module.named_parameters()}
    return torch.func.functional_call(module, detached, (x,))
