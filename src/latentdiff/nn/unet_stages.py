"""The stages of the UNet of LDM and Stable Diffusion, in the published order and under the published names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.nn.attention import AttentionBlock, SpatialTransformer
from latentdiff.nn.resnet import Downsample, ResBlock, Upsample


class Stage(nn.Sequential):
    """Layers run in turn, each given what it reads: residual blocks the embedding, transformers the context.

    ``skip``, of the stage opposite, is joined to ``x`` along the channels first.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None, skip: Tensor | None = None
    ) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, mask)
            else:
                x = layer(x)
        return x


@dataclass(frozen=True, kw_only=True)
class StageBuilder:
    """Builds the stages of each level; ``widths`` and ``depths`` are per level, the highest resolution first.

    Raises InputError where the options contradict each other, see ``models.backbones.unet.UNet``.
    """

    widths: Sequence[int]
    depths: Sequence[int]
    num_res_blocks: int
    attention_factors: Sequence[int]
    embedding: int
    context_dim: int | None
    heads: int | None
    head_width: int | None
    use_linear: bool
    scale_shift: bool
    resblock_updown: bool
    norm_groups: int
    dropout: float

    def __post_init__(self) -> None:
        levels = len(self.widths)
        if (self.heads is None) == (self.head_width is None):
            raise InputError(f"UNet: give exactly one of heads and head_width, got {self.heads} and {self.head_width}")
        known = [2**i for i in range(levels)]
        if strange := [f for f in self.attention_factors if f not in known]:
            raise InputError(f"UNet: attention_factors {strange} name no level; the down-factors are {known}")
        if len(self.depths) != levels:
            raise InputError(f"UNet: transformer_depth has {len(self.depths)} entries for {levels} levels")

    def input_blocks(self, first: nn.Conv2d) -> tuple[nn.ModuleList, list[int]]:
        """The descending half and the width of each of its outputs."""
        blocks, skips = nn.ModuleList([Stage(first)]), [first.out_channels]
        for level, width in enumerate(self.widths):
            for _ in range(self.num_res_blocks):
                blocks.append(Stage(*self._layers(skips[-1], level)))
                skips.append(width)
            if level < len(self.widths) - 1:
                halving = self._res(width, width, "down") if self.resblock_updown else Downsample(width)
                blocks.append(Stage(halving))
                skips.append(width)
        return blocks, skips

    def middle_block(self) -> Stage:
        width, lowest = self.widths[-1], len(self.widths) - 1
        return Stage(self._res(width, width), self._attention(lowest), self._res(width, width))

    def output_blocks(self, skips: Sequence[int]) -> nn.ModuleList:
        """The ascending half; each block also reads the output of the descending half's block opposite to it."""
        blocks, skips, now = nn.ModuleList(), list(skips), skips[-1]
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.num_res_blocks + 1):
                layers = self._layers(now + skips.pop(), level)
                if level > 0 and i == self.num_res_blocks:
                    layers.append(self._res(width, width, "up") if self.resblock_updown else Upsample(width))
                blocks.append(Stage(*layers))
                now = width
        return blocks

    def _layers(self, before: int, level: int) -> list[nn.Module]:
        """A residual block to the level's width, with attention behind it where the level has it."""
        block = self._res(before, self.widths[level])
        return [block, self._attention(level)] if 2**level in self.attention_factors else [block]

    def _res(self, before: int, width: int, resample: Literal["up", "down"] | None = None) -> ResBlock:
        return ResBlock(
            in_channels=before,
            out_channels=width,
            embedding=self.embedding,
            norm_groups=self.norm_groups,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            resample=resample,
        )

    def _attention(self, level: int) -> nn.Module:
        width = self.widths[level]
        heads = _head_count(width, self.heads, self.head_width)
        if self.context_dim is None:
            return AttentionBlock(channels=width, heads=heads, norm_groups=self.norm_groups)
        return SpatialTransformer(
            channels=width,
            heads=heads,
            context_dim=self.context_dim,
            depth=self.depths[level],
            use_linear=self.use_linear,
            norm_groups=self.norm_groups,
            dropout=self.dropout,
        )


def _head_count(width: int, heads: int | None, head_width: int | None) -> int:
    count = heads if head_width is None else width // head_width
    if not count or width % count or head_width not in (None, width // count):
        raise InputError(
            f"UNet: a level of {width} channels cannot be split evenly into heads (heads={heads}, "
            f"head_width={head_width}); choose a number that divides every level's channels"
        )
    return count
