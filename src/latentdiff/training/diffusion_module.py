"""Stage two: the denoiser and its conditioner in the latent space of a frozen codec."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.loss import DiffusionLoss
from latentdiff.diffusion.noise import Draws, offset, seeded_noise, stable_hash
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.text_transformer import TextTransformer
from latentdiff.training.compilation import Compile, compile_blocks
from latentdiff.training.condition_log import ConditionLog
from latentdiff.training.counters import Counters, continue_run
from latentdiff.training.ema import Ema
from latentdiff.training.loss_by_time import QUARTERS, FixedLevelLoss, LossByTime, quarters
from latentdiff.training.non_finite import NonFinite
from latentdiff.training.optim import set_learning_rate
from latentdiff.training.parallel import clip_gradients, shard, trained_networks
from latentdiff.training.parts import check_micro_batch, gradient_sync, latents, moments
from latentdiff.training.power_ema import PowerEma
from latentdiff.training.tally import Tally
from latentdiff.types import Batch


class DiffusionModule(pl.LightningModule):
    """Trains ``denoiser`` and the trainable part of ``conditioner`` on the latents of ``codec``.

    Logged are, in training, the loss, its running means by quarters of t (``LossByTime``), and how often each part of
    the condition was dropped and captions were too long (``ConditionLog``); in validation, with the averaged weights,
    the same loss (``val/loss``, for one run) and ``FixedLevelLoss`` (``val/loss_v``, for comparing runs).

    Args:
        codec: frozen stage one; in no checkpoint of this module.
        denoiser: backbone with its path and parameterization.
        conditioner: batch -> conditioning, with its own drop probability.
        loss: per-sample loss.
        optimizer: named parameters -> optimiser.
        schedule: batch number -> learning-rate factor.
        ema_decay: decay of the averaged weights.
        power_ema: model -> averages from which others are made after training, or None.
        offset_noise: strength of ``diffusion.noise.offset`` in training; validation is without.
        gradient_clip: largest gradient norm, over all micro-batches.
        micro_batch: samples per forward pass and device, None for all; the update is the same, up to
            the masks of dropout.
        compile: ``blocks`` compiles those of the backbone in place; the averaged copies run as written.
        nonfinite: what becomes of a batch with a loss or gradient that is not finite; None: it stops the run.
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
        power_ema: Callable[[nn.Module], PowerEma] | None = None,
        offset_noise: float = 0.0,
        gradient_clip: float = 1.0,
        micro_batch: int | None = None,
        compile: Compile = "none",
        nonfinite: NonFinite | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.codec = codec
        self.model = nn.ModuleDict({"denoiser": denoiser, "conditioner": conditioner})
        self.ema = Ema(self.model, decay=ema_decay)
        self.power_ema = None if power_ema is None else power_ema(self.model)
        self.loss, self.offset_noise = loss, check_offset_noise(offset_noise)
        self.loss_by_time, self.fixed_levels = LossByTime(), FixedLevelLoss()
        self.condition_log = ConditionLog(parts=conditioner.parts if conditioner.drop else ())
        self.optimizer, self.schedule = optimizer, schedule
        self.gradient_clip, self.seed = gradient_clip, seed
        self.micro_batch = check_micro_batch(micro_batch)
        self.nonfinite = nonfinite or NonFinite()
        self.counters = Counters()
        self._validated = 0
        """Images of all ranks before this batch of the validation set."""
        compile_blocks(denoiser.backbone, compile)

    @property
    def latent(self) -> dict[str, int]:
        return {"channels": self.codec.channels, "factor": self.codec.factor}

    def configure_model(self) -> None:
        averages = [self.ema.model, *(self.power_ema.averages if self.power_ema is not None else ())]
        shard(self, ["denoiser.backbone", *trained_networks(self.model, TextTransformer)], self.model, averages)

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer([(name, p) for name, p in self.model.named_parameters() if p.requires_grad])

    def training_step(self, batch: Batch, batch_index: int) -> None:
        number, tally, cut_before = self.counters.batches_seen, Tally(), self._captions_cut
        optimizer = self.optimizers()
        rate = set_learning_rate(optimizer.optimizer, self.schedule(number))
        optimizer.zero_grad()
        parts = batch.cut(self.micro_batch)
        for part in parts:
            loss, t, dropped = self._losses(part, number)
            tally.add({"loss": loss, **{f"dropped/{name}": gone for name, gone in dropped.items()}})
            tally.spread("by_time", loss, quarters(t), QUARTERS)
            with gradient_sync(self, part is parts[-1]):
                self.manual_backward(loss.sum() / len(batch))
        tally.note("grad_norm", clip_gradients(self.model.parameters(), self.gradient_clip))
        tally.note("cut", torch.full((), float(self._captions_cut - cut_before), device=self.device))
        logs = self.nonfinite.settle(tally, batch, self)
        if logs is None:
            return self.counters.advance(batch)
        optimizer.step()
        self.ema.update(self.model)
        if self.power_ema is not None:
            self.power_ema.update(self.model)
        self.counters.advance(batch)
        self.log("train/loss", logs["loss"], prog_bar=True, logger=False, batch_size=len(batch))
        sums, counts = ([logs[f"by_time/{part}{i}"] for i in range(QUARTERS)] for part in ("sum", "count"))
        means = {f"train/loss_{name}": mean for name, mean in self.loss_by_time.update(sums, counts).items()}
        shares = [logs[f"dropped/{name}"] for name in self.condition_log.parts]
        seen = self.condition_log.update(shares, logs["cut"] * self.trainer.world_size, batch.global_size)
        values = {"train/lr": rate, "train/grad_norm": logs["grad_norm"], **means}
        if not hasattr(self.model["conditioner"], "truncated"):
            del seen["captions_cut"]
        values |= {f"train/{name}": value for name, value in seen.items()}
        self.log_dict(values, logger=False, batch_size=len(batch))

    @property
    def _captions_cut(self) -> int:
        """By the text conditioners of this process, so far."""
        return getattr(self.model["conditioner"], "truncated", 0)

    def start_from(self, load: Callable[[nn.Module], None]) -> None:
        """Lets ``load`` fill the backbone with weights, which are then the first average too."""
        load(self.model["denoiser"].backbone)
        self.ema.restart(self.model)

    def _losses(self, batch: Batch, number: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss, t and, for each part of the condition, which samples have lost it; each (B,)."""
        torch.manual_seed(stable_hash(self.seed, number, "dropout", batch.start))
        draws = Draws.of(batch, seed=self.seed, number=number, device=self.device)
        x0 = latents(self.codec, batch, draws)
        cond = self.model["conditioner"](batch, self.codec, draws)
        t = self.loss.sample_t(draws.stratified("t"), self.model["denoiser"].t_max, number)
        noise = draws.normal("noise", tuple(x0.shape[1:]))
        if self.offset_noise:
            noise = offset(noise, draws.normal("offset", (x0.shape[1], 1, 1)), self.offset_noise)
        gone = self.model["conditioner"].dropped(draws)
        dropped = {name: gone[name].to(x0.device, x0.dtype, non_blocking=True) for name in self.condition_log.parts}
        return self.loss(self.model["denoiser"], x0, noise, t, cond), t, dropped

    def on_train_start(self) -> None:
        continue_run(self.trainer, self.counters)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.counters = Counters(**checkpoint["latentdiff"]["counters"])

    def on_validation_epoch_start(self) -> None:
        self._validated = 0
        self.fixed_levels.start()

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Losses of the averaged weights at noise and t that are the same in every validation of every run."""
        denoiser, posterior = self.ema.model["denoiser"], moments(self.codec, batch)
        shape = tuple(posterior[0].shape[1:])
        cond = self.ema.model["conditioner"](batch, self.codec)
        draws = Draws.of(batch, seed=0, number=batch.number, device=self.device)
        t = self.loss.sample_t(draws.stratified("t"), denoiser.t_max)
        x0 = self.codec.draw(posterior, draws.normal("posterior", shape))
        loss = self.loss(denoiser, x0, draws.normal("noise", shape), t, cond)
        self.log("val/loss", loss.mean(), logger=False, batch_size=len(batch), sync_dist=True, prog_bar=True)
        first = self._validated + batch.start
        self._validated += batch.global_size
        numbers = list(range(first, first + len(batch)))
        x0 = self.codec.draw(posterior, seeded_noise(numbers, "posterior", shape).to(posterior[0].device))
        self.fixed_levels.add(denoiser, x0, cond, numbers)

    def on_validation_epoch_end(self) -> None:
        values = {f"val/{name}": value for name, value in self.fixed_levels.finish().items()}
        self.log_dict(values, logger=False)


def check_offset_noise(strength: float) -> float:
    """Raises InputError below 0."""
    if strength < 0:
        raise InputError(
            f"task.offset_noise: expected a strength of at least 0 (0 = none, 0.1 is usual), got {strength}"
        )
    return strength
