"""Residual blocks and resampling of the LDM UNet and of the LDM autoencoder, with the original parameter names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.nn.attention import attend, zero_
from latentdiff.nn.norms import GroupNorm


class ResBlock(nn.Module):
    """The UNet's residual block: the time embedding is added between its two convolutions; starts as its skip path."""

    def __init__(
        self, *, in_channels: int, out_channels: int, embedding: int, norm_groups: int = 32, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(in_channels, norm_groups), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels, norm_groups),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, h, w), emb (B, embedding) -> (B, out_channels, h, w)."""
        y = self.in_layers(x)
        y = self.out_layers(y + self.emb_layers(emb)[:, :, None, None].to(y.dtype))
        return self.skip_connection(x) + y


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
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.nin_shortcut = nn.Identity()

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
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape))
