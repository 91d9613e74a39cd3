"""Stage one: the autoencoder and its discriminator, both updated on every batch."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from latentdiff.diffusion.noise import Draws
from latentdiff.generation.pipeline import to_uint8
from latentdiff.losses.adversarial import AdversarialLoss, AdversarialSchedule, Hinge
from latentdiff.losses.reconstruction import ReconstructionLoss
from latentdiff.losses.regularisers import R1, LeCam
from latentdiff.metrics.latents import ChannelMoments
from latentdiff.metrics.reconstruction import PSNR_CEILING, psnr
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.training.adversarial_game import AdversarialGame
from latentdiff.training.adversary_watch import AdversaryWatch
from latentdiff.training.counters import Counters, continue_run
from latentdiff.training.ema import Ema
from latentdiff.training.non_finite import KeptBuffers, NonFinite
from latentdiff.training.optim import set_learning_rate
from latentdiff.training.parallel import clip_gradients, shard
from latentdiff.training.parts import check_micro_batch, gradient_sync, images
from latentdiff.training.tally import Tally
from latentdiff.types import Batch

_log = logging.getLogger(__name__)

HINGE = Hinge()

WEIGHTS = {"sum": 1e-6, "mean": 1.0}
"""Weight of a bottleneck's penalty by its reduction: LDM's of KL, VQGAN's of VQ."""


class AutoencoderModule(pl.LightningModule):
    """Trains ``autoencoder`` on reconstruction + perceptual + patch-adversarial + latent loss (arXiv:2112.10752).

    ``training_step`` is the order of events; the gradients are ``AdversarialGame``'s.

    Args:
        autoencoder: what is trained.
        reconstruction: per-sample negative log-likelihood, summed over elements.
        discriminator: (B, C, H, W) -> logits, or None to train without an adversary.
        adversarial: when and how strongly the adversary acts.
        optimizer: named parameters -> optimiser, for the autoencoder and the log-scale.
        discriminator_optimizer: the same for the discriminator.
        schedule: batch number -> learning-rate factor, for both.
        adversarial_loss: what both players minimise.
        r1: gradient penalty of the discriminator, or None.
        lecam: regulariser of the discriminator's logits, or None.
        bottleneck_weight: weight of the bottleneck's penalty, None for the published one: 1e-6 for KL, which is summed
            over latent elements; 1 for VQ, a mean over them times the image's elements (see ``Bottleneck.reduction``).
        ema_decay: decay of the averaged weights.
        gradient_clip: largest gradient norm of the autoencoder, over all micro-batches.
        micro_batch: samples per forward pass and device, None for all; the update is the same, up to
            the masks of dropout.
        alarm_window: batches after which the state of the adversarial game is judged.
        statistics_images: training images over which the latents' mean and standard deviation are taken.
        nonfinite: what becomes of a batch with a loss or gradient that is not finite; None: it stops the run.
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
        adversarial_loss: AdversarialLoss = HINGE,
        r1: R1 | None = None,
        lecam: LeCam | None = None,
        bottleneck_weight: float | None = None,
        ema_decay: float = 0.999,
        gradient_clip: float = 1.0,
        micro_batch: int | None = None,
        alarm_window: int = 500,
        statistics_images: int = 2048,
        nonfinite: NonFinite | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.autoencoder = autoencoder
        self.reconstruction = reconstruction
        self.discriminator = discriminator
        self.lecam = lecam
        self.watch = None if discriminator is None else AdversaryWatch(window=alarm_window)
        self.game = AdversarialGame(
            autoencoder=autoencoder,
            reconstruction=reconstruction,
            discriminator=discriminator,
            schedule=adversarial,
            loss=adversarial_loss,
            r1=r1,
            lecam=lecam,
            bottleneck_weight=WEIGHTS[autoencoder.bottleneck.reduction]
            if bottleneck_weight is None
            else bottleneck_weight,
            seed=seed,
        )
        self.optimizer, self.discriminator_optimizer, self.schedule = optimizer, discriminator_optimizer, schedule
        self.gradient_clip, self.micro_batch = gradient_clip, check_micro_batch(micro_batch)
        self.statistics_images, self.seed = statistics_images, seed
        self.nonfinite = nonfinite or NonFinite()
        self.ema = Ema(autoencoder, decay=ema_decay)
        self.register_buffer("latent_mean", torch.zeros(autoencoder.latent_channels))
        self.register_buffer("latent_std", torch.ones(autoencoder.latent_channels))
        self.counters = Counters()

    @property
    def latent(self) -> dict[str, int]:
        return {"channels": self.autoencoder.latent_channels, "factor": self.autoencoder.factor}

    def configure_model(self) -> None:
        """The discriminator stays whole: it is small, and its gradient penalty differentiates it twice."""
        shard(self, ["encoder", "decoder"], self.autoencoder, [self.ema.model])

    def configure_optimizers(self) -> list[Optimizer]:
        parts = nn.ModuleDict({"autoencoder": self.autoencoder, "reconstruction": self.reconstruction})
        optimizers = [self.optimizer([(name, p) for name, p in parts.named_parameters() if p.requires_grad])]
        if self.discriminator is not None:
            optimizers.append(self.discriminator_optimizer(self.discriminator.named_parameters()))
        return optimizers

    def training_step(self, batch: Batch, batch_index: int) -> None:
        number, tally = self.counters.batches_seen, Tally()
        trained, kept = self._trained(number), self._kept_buffers()
        for optimizer in trained:
            set_learning_rate(optimizer.optimizer, self.schedule(number))
            optimizer.zero_grad()
        self.game.play(batch, number, tally, self._backward, self.micro_batch)
        tally.note("grad_norm", clip_gradients(self.autoencoder.parameters(), self.gradient_clip))
        if self.reconstruction.logvar.requires_grad:
            tally.note("logvar_grad", self.reconstruction.logvar.grad.abs())
        if len(trained) > 1:
            gradients = [p.grad for p in self.discriminator.parameters()]
            tally.note("discriminator_grad_norm", nn.utils.get_total_norm(gradients))
        logs = self.nonfinite.settle(tally, batch, self)
        if logs is None:
            return self._pass_over(batch, kept)
        for optimizer in trained:
            optimizer.step()
        draws = Draws.of(batch, seed=self.seed, number=number, device=self.device)
        logs |= self.autoencoder.bottleneck.after_batch(draws)
        self.ema.update(self.autoencoder)
        self.counters.advance(batch)
        rates = {name: one.param_groups[0]["lr"] for name, one in zip(("lr", "discriminator_lr"), trained)}
        logs |= {**rates, **self._watch_adversary(number, logs, batch.image[0].numel())}
        self.log("train/nll", logs.pop("nll"), prog_bar=True, logger=False, batch_size=len(batch))
        self.log_dict({f"train/{k}": v for k, v in logs.items()}, logger=False, batch_size=len(batch))

    def _kept_buffers(self) -> KeptBuffers | None:
        """The discriminator's running statistics, where a batch may be passed over that would spoil them."""
        return KeptBuffers(self.discriminator) if self.nonfinite.skip and self.discriminator is not None else None

    def _pass_over(self, batch: Batch, kept: KeptBuffers | None) -> None:
        self.autoencoder.bottleneck.forget_batch()
        if kept is not None:
            kept.put_back()
        self.counters.advance(batch)

    def _trained(self, number: int) -> list[LightningOptimizer]:
        """The optimisers that step in batch ``number``."""
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        return optimizers if self.game.discriminator_trains(number) else optimizers[:1]

    def _backward(self, loss: Tensor, last: bool) -> None:
        with gradient_sync(self, last):
            self.manual_backward(loss)

    def _watch_adversary(self, number: int, logs: dict, elements: int) -> dict[str, float]:
        """Takes the batch's values to where they are remembered; what is known of the game now."""
        if not self.game.discriminator_trains(number):
            return {}
        real, fake, weight = logs["logits_real"], logs["logits_fake"], logs.get("adaptive_weight")
        if self.lecam is not None:
            self.lecam.update(real, fake)
        limit = self.game.adaptive_limit(elements)
        accuracy = logs["discriminator_accuracy"]
        news = self.watch.observe(accuracy=accuracy, real=real, fake=fake, weight=weight, limit=limit)
        if news and self.trainer.is_global_zero:
            _log.warning("batch %d: %s", self.counters.batches_seen, news)
        heard = {} if weight is None else {"adversarial_weight": self.game.heard(number) * weight}
        return {"adversary_state": self.watch.state, **heard}

    def on_train_start(self) -> None:
        continue_run(self.trainer, self.counters)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.counters = Counters(**checkpoint["latentdiff"]["counters"])

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The reconstructions by the averaged weights, uint8 (B, C, H, W), for the callbacks that measure them."""
        image = images(batch, like=self.autoencoder.last_layer)
        noise = image.new_zeros(len(batch), *self.autoencoder.latent_shape(*image.shape[-2:]))
        reconstruction, latent = self.ema.model(image, noise)
        rebuilt = to_uint8(reconstruction)
        values = {"val/psnr": psnr(rebuilt, batch.image).clamp(max=PSNR_CEILING).mean()}
        values |= {f"val/{name}": value for name, value in latent.logs.items()}
        self.log_dict(values, logger=False, batch_size=len(batch), sync_dist=True, on_epoch=True, prog_bar=True)
        return rebuilt

    @torch.no_grad()
    def measure_latents(self) -> None:
        """Per-channel mean and std of draws of the averaged encoder's latents over training images of all ranks."""
        moments = ChannelMoments(self.autoencoder.latent_channels, self.device)
        for batch in self.trainer.datamodule.statistics_batches(self.statistics_images):
            image = images(batch, like=self.autoencoder.last_layer).to(self.device)
            moments.update(self.ema.model.encode(image))
        mean, std, _ = moments.compute()
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
