"""The convolutional encoder and decoder of LDM's autoencoders (arXiv:2112.10752, appendix; layout of arXiv:2012.09841).

Parameter names and order of operations are the published ones, so SD's autoencoder weights load.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.nn.norms import GroupNorm
from latentdiff.nn.resnet import AsymmetricDownsample, AttnBlock, ResnetBlock, Upsample


class _Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the level has it."""

    def __init__(self, widths: Sequence[int], *, attention: bool, norm_groups: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels=a, out_channels=b, norm_groups=norm_groups, dropout=dropout)
            for a, b in pairwise(widths)
        )
        self.attn = nn.ModuleList(AttnBlock(b, norm_groups=norm_groups) for b in widths[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class _Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, *, attention: bool, norm_groups: int, dropout: float) -> None:
        super().__init__()
        block = partial(ResnetBlock, norm_groups=norm_groups, dropout=dropout)
        self.block_1 = block(in_channels=channels, out_channels=channels)
        self.attn_1 = AttnBlock(channels, norm_groups=norm_groups) if attention else nn.Identity()
        self.block_2 = block(in_channels=channels, out_channels=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H / f, W / f) with f = 2^(levels - 1).

    ``attention_factors``: the down-factors (1, 2, 4, ...) at which every residual block is followed by attention.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        attention_factors: Sequence[int] = (),
        mid_attention: bool = True,
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_multipliers]
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([channels, *widths], widths)):
            level = _Level(
                [before] + [width] * num_res_blocks,
                attention=2**i in attention_factors,
                norm_groups=norm_groups,
                dropout=dropout,
            )
            if i < len(widths) - 1:
                level.downsample = AsymmetricDownsample(width)
            self.down.append(level)
        self.mid = _Middle(widths[-1], attention=mid_attention, norm_groups=norm_groups, dropout=dropout)
        self.norm_out = GroupNorm(widths[-1], norm_groups, eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x)
            if i < len(self.down) - 1:
                x = level.downsample(x)  # type: ignore[operator]
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, f h, f w): the encoder mirrored, one block more per level."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        attention_factors: Sequence[int] = (),
        mid_attention: bool = True,
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_multipliers]
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], attention=mid_attention, norm_groups=norm_groups, dropout=dropout)
        self.up = nn.ModuleList()  # up[0] is the highest resolution and runs last
        for i, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]])):
            level = _Level(
                [before] + [width] * (num_res_blocks + 1),
                attention=2**i in attention_factors,
                norm_groups=norm_groups,
                dropout=dropout,
            )
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = GroupNorm(widths[0], norm_groups, eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for i in reversed(range(len(self.up))):
            x = self.up[i](x)
            if i > 0:
                x = self.up[i].upsample(x)  # type: ignore[operator]
        return self.conv_out(F.silu(self.norm_out(x)))
