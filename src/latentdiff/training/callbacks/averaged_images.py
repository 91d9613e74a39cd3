"""Images of the averaged weights while they are trained."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
from torch import Tensor

from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.training.callbacks.interruption import stop_pending
from latentdiff.training.parallel import is_sharded
from latentdiff.types import Guidance, OnStep, Sampler


class AbandonedError(Exception):
    """The run stops after this batch."""


def averaged_pipeline(
    module: pl.LightningModule,
    *,
    sampler: Sampler,
    grid: Callable[..., Tensor],
    steps: int,
    guidance: Guidance,
    image_size: int,
) -> LatentPipeline:
    """That of a ``DiffusionModule``'s averages as they are now, in float32."""
    return LatentPipeline(
        denoiser=module.ema.model["denoiser"],
        conditioner=module.ema.model["conditioner"],
        codec=module.codec,
        sampler=sampler,
        grid=grid,
        steps=steps,
        guidance=guidance,
        image_size=image_size,
    )


def giving_way(trainer: pl.Trainer, module: pl.LightningModule) -> OnStep:
    """Raises ``AbandonedError`` at a sampler's step once the run has been told to stop: it has to save in time. Not
    where the weights are sharded: the ranks sample together."""

    def give_way(*_: object) -> None:
        if stop_pending(trainer) and not is_sharded(module):
            raise AbandonedError

    return give_way
