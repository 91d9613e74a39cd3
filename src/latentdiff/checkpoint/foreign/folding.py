"""Whitening as a part of the autoencoder, for programs that know one scale of the latents at most."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.codec import LatentCodec


def folded(codec: LatentCodec, *, scale: float = 1.0) -> LatentCodec:
    """The same codec, with an autoencoder whose latents times ``scale`` are the whitened ones.

    The whitening goes into the 1x1 convolutions around the bottleneck, and where there are none into new ones: the
    decoder's first convolution pads with zeros, where a shift would come out wrong at the borders. The log-variance is
    clamped to [-30, 20] after its shift, not before: that changes standard deviations of the whitened latents below
    e^-15 max(1, 1 / std), and those above e^10 min(1, 1 / std), which no trained encoder has.

    The bottleneck is KL: whitening a quantiser's codes changes which is the nearest.
    """
    autoencoder = codec.autoencoder
    if not isinstance(autoencoder.bottleneck, KL):
        raise ValueError(f"whitening is folded around KL alone, got {type(autoencoder.bottleneck).__name__}")
    mean, std = codec.mean.flatten().double(), codec.std.flatten().double() * scale
    made = copy.deepcopy(autoencoder)
    weight, bias = _convolution(autoencoder.quant_conv, 2 * codec.channels)
    factor, shift = torch.cat([1 / std, torch.ones_like(std)]), torch.cat([-mean / std, -2 * std.log()])
    made.quant_conv = _made(weight * factor.view(-1, 1, 1, 1), bias * factor + shift, like=autoencoder)
    weight, bias = _convolution(autoencoder.post_quant_conv, codec.channels)
    made.post_quant_conv = _made(weight * std.view(1, -1, 1, 1), bias + weight.flatten(1) @ mean, like=autoencoder)
    return LatentCodec(autoencoder=made, mean=0.0, std=1 / scale)


def _convolution(module: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Weight (out, in, 1, 1) and bias (out,), float64; the identity's where there is no convolution."""
    if isinstance(module, nn.Conv2d):
        return module.weight.detach().double(), module.bias.detach().double()
    return torch.eye(channels, dtype=torch.float64)[:, :, None, None], torch.zeros(channels, dtype=torch.float64)


def _made(weight: Tensor, bias: Tensor, *, like: Autoencoder) -> nn.Conv2d:
    made = nn.Conv2d(weight.shape[1], weight.shape[0], 1).to(like.last_layer)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made
