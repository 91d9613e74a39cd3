"""Stage two: the denoiser and its conditioner in the latent space of a frozen codec."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.loss import DiffusionLoss
from latentdiff.diffusion.noise import Draws
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.training.counters import Counters, continue_run
from latentdiff.training.ema import Ema
from latentdiff.training.optim import set_learning_rate
from latentdiff.types import Batch


class DiffusionModule(pl.LightningModule):
    """Trains ``denoiser`` and the trainable part of ``conditioner`` on the latents of ``codec``.

    Args:
        codec: frozen stage one; in no checkpoint of this module.
        denoiser: backbone with its path and parameterization.
        conditioner: batch -> conditioning, with its own drop probability.
        loss: per-sample loss.
        optimizer: named parameters -> optimiser.
        schedule: batch number -> learning-rate factor.
        ema_decay: decay of the averaged weights.
        gradient_clip: largest gradient norm.
        seed: of every random draw.
    """

    kind = "diffusion"

    def __init__(
        self,
        *,
        codec: LatentCodec,
        denoiser: Denoiser,
        conditioner: nn.Module,
        loss: DiffusionLoss,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[int], float],
        ema_decay: float = 0.9999,
        gradient_clip: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.codec = codec
        self.model = nn.ModuleDict({"denoiser": denoiser, "conditioner": conditioner})
        self.ema = Ema(self.model, decay=ema_decay)
        self.loss = loss
        self.optimizer, self.schedule = optimizer, schedule
        self.gradient_clip, self.seed = gradient_clip, seed
        self.counters = Counters()

    @property
    def latent(self) -> dict[str, int]:
        return {"channels": self.codec.channels, "factor": self.codec.factor}

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer([(name, p) for name, p in self.model.named_parameters() if p.requires_grad])

    def training_step(self, batch: Batch, batch_index: int) -> None:
        draws = self._draws(batch, self.counters.batches_seen)
        x0 = self._encode(batch, draws)
        cond = self.model["conditioner"](batch, self.codec, draws)
        t = self.loss.sample_t(draws.stratified("t"), self.model["denoiser"].t_max)
        noise = draws.normal("noise", tuple(x0.shape[1:]))
        loss = self.loss(self.model["denoiser"], x0, noise, t, cond).mean()
        self._update(loss, batch)

    def _update(self, loss: Tensor, batch: Batch) -> None:
        optimizer = self.optimizers()
        rate = set_learning_rate(optimizer.optimizer, self.schedule(self.counters.batches_seen))
        optimizer.zero_grad()
        self.manual_backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        optimizer.step()
        self.ema.update(self.model)
        self.counters.advance(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, logger=False, batch_size=len(batch))
        values = {"train/lr": rate, "train/grad_norm": norm}
        self.log_dict(values, logger=False, batch_size=len(batch))

    def on_train_start(self) -> None:
        continue_run(self.trainer, self.counters)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.counters = Counters(**checkpoint["latentdiff"]["counters"])

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Loss of the averaged weights at noise and t that are the same in every validation of every run."""
        draws = Draws(
            seed=0,
            number=batch.number,
            start=batch.start,
            count=len(batch),
            total=batch.global_size,
            device=self.device,
        )
        x0 = self._encode(batch, draws)
        cond = self.ema.model["conditioner"](batch, self.codec)
        t = self.loss.sample_t(draws.stratified("t"), self.ema.model["denoiser"].t_max)
        loss = self.loss(self.ema.model["denoiser"], x0, draws.normal("noise", tuple(x0.shape[1:])), t, cond)
        self.log("val/loss", loss.mean(), logger=False, batch_size=len(batch), sync_dist=True, prog_bar=True)

    def _draws(self, batch: Batch, number: int) -> Draws:
        return Draws(
            seed=self.seed,
            number=number,
            start=batch.start,
            count=len(batch),
            total=batch.global_size,
            device=self.device,
        )

    @torch.no_grad()
    def _encode(self, batch: Batch, draws: Draws) -> Tensor:
        moments = self.codec.moments(batch.image.float() / 127.5 - 1.0)
        return self.codec.draw(moments, draws.normal("posterior", tuple(moments[0].shape[1:])))
