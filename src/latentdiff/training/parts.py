"""A rank's part of a global batch, cut where it does not fit into memory: images, gradients summed over the cuts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.training.parallel import average_gradients, is_sharded, set_gradient_sync
from latentdiff.types import Batch


def images(batch: Batch, *, like: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> [-1, 1], in float64 where ``like`` is, else in float32."""
    return batch.image.to(torch.float64 if like.dtype is torch.float64 else torch.float32) / 127.5 - 1.0


def moments(codec: LatentCodec, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean and std of the raw posterior of each image, (B, C, h, w): from a cache, else of ``batch.image``."""
    if batch.latent_mean is not None and batch.latent_std is not None:
        return batch.latent_mean, batch.latent_std
    return codec.moments(images(batch, like=codec.mean))


@torch.no_grad()
def latents(codec: LatentCodec, batch: Batch, draws: Draws) -> Tensor:
    """A draw of the posterior of each image: whitened latents (B, C, h, w)."""
    mean, std = moments(codec, batch)
    return codec.draw((mean, std), draws.normal("posterior", tuple(mean.shape[1:])))


def check_micro_batch(size: int | None) -> int | None:
    """Raises InputError unless ``size`` is None or at least 1."""
    if size is not None and size < 1:
        raise InputError(
            f"task.micro_batch: expected samples per forward pass and device, at least 1, or null for all; got {size}"
        )
    return size


@contextmanager
def gradient_sync(module: pl.LightningModule, wanted: bool) -> Iterator[None]:
    """Around a backward pass: its gradients are averaged over the ranks only if ``wanted``, on that of the last cut."""
    if is_sharded(module):
        set_gradient_sync(module, wanted)
        yield
        if wanted:
            average_gradients(module)
        return
    model = module.trainer.model
    with nullcontext() if wanted or not isinstance(model, DistributedDataParallel) else model.no_sync():
        yield
