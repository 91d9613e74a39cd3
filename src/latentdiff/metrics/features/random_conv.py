"""Features that need no download: a fixed random convolutional network."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import POOL, check_images, full_precision
from latentdiff.types import Batch


class RandomConvFeatures(nn.Module):
    """Mean and standard deviation of the activations of a fixed random convolutional network at several scales.

    Needs no download and takes milliseconds, for tests, small runs and watching a training. Random features see colour,
    texture and coarse shape; a distance between them is NOT a FID. The weights come from a CPU generator and are the
    same on every machine.

    Args:
        seed: of the weights; another seed is another metric and is named so.
        dim: number of features, a multiple of ``2 * scales``.
        scales: each halves the resolution; images need at least ``2 ** scales`` pixels a side.
    """

    published = False

    def __init__(self, *, seed: int = 0, dim: int = 256, scales: int = 4):
        super().__init__()
        if scales < 1 or dim < 1 or dim % (2 * scales):
            raise InputError(f"dim must be a positive multiple of 2 * scales = {2 * scales}; got {dim}")
        self.layers, self.scales = {POOL: dim}, scales
        standard = (seed, dim, scales) == (0, 256, 4)
        self.name = "randconv-v1" if standard else f"randconv-v1-seed{seed}-dim{dim}-scales{scales}"
        generator = torch.Generator().manual_seed(seed)
        width, channels = dim // (2 * scales), 3
        for level in range(scales):
            fan_in = channels * 9
            weight = torch.randn(width, channels, 3, 3, generator=generator) * (2.0 / fan_in) ** 0.5
            self.register_buffer(f"weight{level}", weight, persistent=False)
            self.register_buffer(f"bias{level}", 0.1 * torch.randn(width, generator=generator), persistent=False)
            channels = width

    def forward(self, images: Tensor, batch: Batch, layers: Collection[str] = (POOL,)) -> dict[str, Tensor]:
        check_images(images)
        if min(images.shape[-2:]) < 2**self.scales:
            raise InputError(f"{self.name} needs images of at least {2**self.scales} pixels; got {tuple(images.shape)}")
        with full_precision(images.device), torch.no_grad():
            x, pooled = images.float() / 127.5 - 1.0, []
            for level in range(self.scales):
                x = F.avg_pool2d(x, 2) if level else x
                weight, bias = self.get_buffer(f"weight{level}"), self.get_buffer(f"bias{level}")
                x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias), 0.2)
                pooled += [x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)]
            return {POOL: torch.cat(pooled, dim=1)}

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"network": "fixed random convolutions", "resize": "none"}
