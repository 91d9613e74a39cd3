"""Residual blocks and resampling of the LDM UNet and of the LDM autoencoder, with the original parameter names."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.nn.attention import attend, zero_
from latentdiff.nn.norms import GroupNorm


class ResBlock(nn.Module):
    """The UNet's residual block: the time embedding enters between its two convolutions; starts as its skip path.

    - ``scale_shift``: the embedding scales and shifts the second norm's output (arXiv:2105.05233, section 3, "adaptive
      group normalization") in place of being added before it.
    - ``resample``: the block doubles (nearest neighbour) or halves (mean of 2x2) height and width on both of its paths,
      before its first convolution (arXiv:2011.13456, appendix H, after BigGAN).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        embedding: int,
        norm_groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            GroupNorm(in_channels, norm_groups), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        width = 2 * out_channels if scale_shift else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, width))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels, norm_groups),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, h, w), emb (B, embedding) -> (B, out_channels, h, w), or at twice or half the height and width."""
        norm, activation, convolution = self.in_layers
        y = convolution(self._resampled(activation(norm(x))))
        emb = self.emb_layers(emb)[:, :, None, None].to(y.dtype)
        if self.scale_shift:
            norm, activation, dropout, convolution = self.out_layers
            scale, shift = emb.chunk(2, dim=1)
            y = convolution(dropout(activation(norm(y) * (1 + scale) + shift)))
        else:
            y = self.out_layers(y + emb)
        return self.skip_connection(self._resampled(x)) + y

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample is None:
            return x
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else F.avg_pool2d(x, 2)


class Downsample(nn.Module):
    """The UNet's halving: 3x3 convolution of stride 2 with padding on all sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class AsymmetricDownsample(nn.Module):
    """The autoencoder's halving: 3x3 convolution of stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResnetBlock(nn.Module):
    """The autoencoder's residual block."""

    def __init__(self, *, in_channels: int, out_channels: int, norm_groups: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, norm_groups, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, norm_groups, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        changed = in_channels != out_channels
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return self.nin_shortcut(x) + y


class AttnBlock(nn.Module):
    """The autoencoder's single-head self-attention over positions."""

    def __init__(self, channels: int, *, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, norm_groups, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (_by_position(conv, y)[:, None] for conv in (self.q, self.k, self.v))
        y = _by_position(self.proj_out, attend(q, k, v)[:, 0])
        return x + y.transpose(1, 2).reshape(x.shape)


def _by_position(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A 1x1 convolution of (B, L, C), in the order of operations of diffusers' linear layer."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)
