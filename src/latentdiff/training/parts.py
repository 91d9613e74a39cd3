"""A rank's part of a global batch, cut where it does not fit into memory: images, gradients summed over the cuts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.types import Batch


def images(batch: Batch, *, like: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> [-1, 1], in float64 where ``like`` is, else in float32."""
    return batch.image.to(torch.float64 if like.dtype is torch.float64 else torch.float32) / 127.5 - 1.0


@torch.no_grad()
def latents(codec: LatentCodec, batch: Batch, draws: Draws) -> Tensor:
    """A draw of the posterior of each image: whitened latents (B, C, h, w)."""
    moments = codec.moments(images(batch, like=codec.mean))
    return codec.draw(moments, draws.normal("posterior", tuple(moments[0].shape[1:])))


def check_micro_batch(size: int | None) -> int | None:
    """Raises InputError unless ``size`` is None or at least 1."""
    if size is not None and size < 1:
        raise InputError(
            f"task.micro_batch: expected samples per forward pass and device, at least 1, or null for all; got {size}"
        )
    return size


def gradient_sync(module: pl.LightningModule, wanted: bool) -> AbstractContextManager:
    """In it, a backward pass under DDP sums gradients over the ranks only if ``wanted``: that of the last cut."""
    model = module.trainer.model
    return nullcontext() if wanted or not isinstance(model, DistributedDataParallel) else model.no_sync()
