"""The noise-aware classifier of classifier guidance, in the latent space of a frozen codec."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from latentdiff.diffusion.noise import Draws, stable_hash
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.classifier import NoisyClassifier
from latentdiff.training.counters import Counters, continue_run
from latentdiff.training.ema import Ema
from latentdiff.training.loss_by_time import QUARTERS, quarters
from latentdiff.training.non_finite import NonFinite
from latentdiff.training.optim import set_learning_rate
from latentdiff.training.parallel import clip_gradients, shard
from latentdiff.training.parts import check_micro_batch, gradient_sync, latents
from latentdiff.training.tally import PARTS, Tally, in_bins
from latentdiff.types import Batch


class ClassifierModule(pl.LightningModule):
    """Trains ``classifier`` on the noised latents of ``codec``: cross-entropy of ``batch.label`` at x_t, mean over
    samples (arXiv:2105.05233 section 4.1).

    Logs loss and accuracy, and the accuracy in each quarter of t (``accuracy_t0`` nearest to the data). A sample
    without a label, or with one that the classifier has not, stops the run with an InputError.

    Args:
        codec: frozen stage one; in no checkpoint of this module.
        classifier: network and path.
        timesteps: law of t, see ``diffusion.timesteps``.
        optimizer: named parameters -> optimiser.
        schedule: batch number -> learning-rate factor.
        ema_decay: decay of the averaged weights.
        gradient_clip: largest gradient norm, over all micro-batches.
        micro_batch: samples per forward pass and device, None for all.
        nonfinite: what becomes of a batch with a loss or gradient that is not finite; None: it stops the run.
        seed: of every random draw.
    """

    kind = "classifier"

    def __init__(
        self,
        *,
        codec: LatentCodec,
        classifier: NoisyClassifier,
        timesteps: Callable[..., Tensor],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[int], float],
        ema_decay: float = 0.999,
        gradient_clip: float = 1.0,
        micro_batch: int | None = None,
        nonfinite: NonFinite | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.codec = codec
        self.model = classifier
        self.ema = Ema(classifier, decay=ema_decay)
        self.timesteps = timesteps
        self.optimizer, self.schedule = optimizer, schedule
        self.gradient_clip, self.seed = gradient_clip, seed
        self.micro_batch = check_micro_batch(micro_batch)
        self.nonfinite = nonfinite or NonFinite()
        self.counters = Counters()
        self._validated: Tensor | None = None

    @property
    def latent(self) -> dict[str, int]:
        return {"channels": self.codec.channels, "factor": self.codec.factor}

    def configure_model(self) -> None:
        shard(self, ["network"], self.model, [self.ema.model])

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer([(name, p) for name, p in self.model.named_parameters() if p.requires_grad])

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Labels are looked at here, where that does not wait for a GPU."""
        self.model.check_labels(batch.label, batch.keys)
        return batch

    def training_step(self, batch: Batch, batch_index: int) -> None:
        number, tally = self.counters.batches_seen, Tally()
        optimizer = self.optimizers()
        rate = set_learning_rate(optimizer.optimizer, self.schedule(number))
        optimizer.zero_grad()
        parts = batch.cut(self.micro_batch)
        for part in parts:
            draws = Draws.of(part, seed=self.seed, number=number, device=self.device)
            torch.manual_seed(stable_hash(self.seed, number, "dropout", part.start))
            loss, right, t = self._answers(self.model, part, draws)
            tally.add({"loss": loss, "accuracy": right})
            tally.spread("accuracy", right, quarters(t), QUARTERS)
            with gradient_sync(self, part is parts[-1]):
                self.manual_backward(loss.sum() / len(batch))
        tally.note("grad_norm", clip_gradients(self.model.parameters(), self.gradient_clip))
        logs = self.nonfinite.settle(tally, batch, self)
        if logs is None:
            return self.counters.advance(batch)
        optimizer.step()
        self.ema.update(self.model)
        self.counters.advance(batch)
        self.log("train/loss", logs["loss"], prog_bar=True, logger=False, batch_size=len(batch))
        values = {f"train/{name}": logs[name] for name in ("accuracy", "grad_norm")}
        sums = [[logs[f"accuracy/{what}{i}"] for i in range(QUARTERS)] for what in PARTS]
        values |= {"train/lr": rate, **_by_quarter("train", *sums)}
        self.log_dict(values, logger=False, batch_size=len(batch))

    def _answers(self, classifier: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy in nats, 1 where the class is right, and t; each (B,)."""
        x0 = latents(self.codec, batch, draws)
        t = self.timesteps(draws.stratified("t"), 1.0)
        x_t = self.model.path.mix(x0, draws.normal("noise", tuple(x0.shape[1:])), t)
        logits = classifier(x_t, t)
        right = (logits.detach().argmax(-1) == batch.label).to(logits.dtype)
        return F.cross_entropy(logits, batch.label, reduction="none"), right, t

    def on_train_start(self) -> None:
        continue_run(self.trainer, self.counters)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.counters = Counters(**checkpoint["latentdiff"]["counters"])

    def on_validation_epoch_start(self) -> None:
        self._validated = torch.zeros(2, QUARTERS, device=self.device)

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """The averaged weights at noise and t that are the same in every validation of every run."""
        draws = Draws.of(batch, seed=0, number=batch.number, device=self.device)
        loss, right, t = self._answers(self.ema.model, batch, draws)
        self._validated += in_bins(right, quarters(t), QUARTERS)
        values = {"val/loss": loss.mean(), "val/accuracy": right.mean()}
        self.log_dict(values, logger=False, batch_size=len(batch), sync_dist=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._validated)
        self.log_dict(_by_quarter("val", *self._validated.tolist()), logger=False)


def _by_quarter(prefix: str, right: list[float], count: list[float]) -> dict[str, float]:
    """Accuracies of the quarters that have samples."""
    return {f"{prefix}/accuracy_t{i}": r / n for i, (r, n) in enumerate(zip(right, count)) if n}
