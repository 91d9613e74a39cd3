"""Stage two: the denoiser and its conditioner in the latent space of a frozen codec."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.loss import DiffusionLoss
from latentdiff.diffusion.noise import Draws, stable_hash
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.training.counters import Counters, continue_run
from latentdiff.training.ema import Ema
from latentdiff.training.optim import set_learning_rate
from latentdiff.training.parts import check_micro_batch, gradient_sync, images
from latentdiff.training.tally import Tally
from latentdiff.types import Batch


class DiffusionModule(pl.LightningModule):
    """Trains ``denoiser`` and the trainable part of ``conditioner`` on the latents of ``codec``.

    A loss that is not finite stops the run before the update (NonFiniteError, on all ranks).

    Args:
        codec: frozen stage one; in no checkpoint of this module.
        denoiser: backbone with its path and parameterization.
        conditioner: batch -> conditioning, with its own drop probability.
        loss: per-sample loss.
        optimizer: named parameters -> optimiser.
        schedule: batch number -> learning-rate factor.
        ema_decay: decay of the averaged weights.
        gradient_clip: largest gradient norm, over all micro-batches.
        micro_batch: samples per forward pass and device, None for all; the update is the same, up to
            the masks of dropout.
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
        micro_batch: int | None = None,
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
        self.micro_batch = check_micro_batch(micro_batch)
        self.counters = Counters()

    @property
    def latent(self) -> dict[str, int]:
        return {"channels": self.codec.channels, "factor": self.codec.factor}

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer([(name, p) for name, p in self.model.named_parameters() if p.requires_grad])

    def training_step(self, batch: Batch, batch_index: int) -> None:
        number, tally = self.counters.batches_seen, Tally()
        optimizer = self.optimizers()
        rate = set_learning_rate(optimizer.optimizer, self.schedule(number))
        optimizer.zero_grad()
        parts = batch.cut(self.micro_batch)
        for part in parts:
            loss = self._losses(part, number)
            tally.add({"loss": loss})
            with gradient_sync(self, part is parts[-1]):
                self.manual_backward(loss.sum() / len(batch))
        tally.note("grad_norm", nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip))
        logs = tally.settle(keys=batch.keys, number=number)
        optimizer.step()
        self.ema.update(self.model)
        self.counters.advance(batch)
        self.log("train/loss", logs["loss"], prog_bar=True, logger=False, batch_size=len(batch))
        values = {"train/lr": rate, "train/grad_norm": logs["grad_norm"]}
        self.log_dict(values, logger=False, batch_size=len(batch))

    def _losses(self, batch: Batch, number: int) -> Tensor:
        """(B,)"""
        torch.manual_seed(stable_hash(self.seed, number, "dropout", batch.start))
        draws = Draws.of(batch, seed=self.seed, number=number, device=self.device)
        x0 = self._encode(batch, draws)
        cond = self.model["conditioner"](batch, self.codec, draws)
        t = self.loss.sample_t(draws.stratified("t"), self.model["denoiser"].t_max)
        noise = draws.normal("noise", tuple(x0.shape[1:]))
        return self.loss(self.model["denoiser"], x0, noise, t, cond)

    def on_train_start(self) -> None:
        continue_run(self.trainer, self.counters)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.counters = Counters(**checkpoint["latentdiff"]["counters"])

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Loss of the averaged weights at noise and t that are the same in every validation of every run."""
        draws = Draws.of(batch, seed=0, number=batch.number, device=self.device)
        x0 = self._encode(batch, draws)
        cond = self.ema.model["conditioner"](batch, self.codec)
        t = self.loss.sample_t(draws.stratified("t"), self.ema.model["denoiser"].t_max)
        loss = self.loss(self.ema.model["denoiser"], x0, draws.normal("noise", tuple(x0.shape[1:])), t, cond)
        self.log("val/loss", loss.mean(), logger=False, batch_size=len(batch), sync_dist=True, prog_bar=True)

    @torch.no_grad()
    def _encode(self, batch: Batch, draws: Draws) -> Tensor:
        moments = self.codec.moments(images(batch, like=self.codec.mean))
        return self.codec.draw(moments, draws.normal("posterior", tuple(moments[0].shape[1:])))
