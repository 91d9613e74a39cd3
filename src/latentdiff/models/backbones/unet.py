"""The UNet of latent diffusion and Stable Diffusion (arXiv:2112.10752, section 3.3; arXiv:2105.05233).

Parameter names and layout are the published ones: the weights of LDM, SD 1, SD 2 and SDXL load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.nn.attention import AttentionBlock, SpatialTransformer, zero_
from latentdiff.nn.embeddings import position_embedding, timestep_embedding
from latentdiff.nn.norms import GroupNorm
from latentdiff.nn.resnet import Downsample, ResBlock, Upsample
from latentdiff.types import Conditioning


class Stage(nn.Sequential):
    """Layers run in turn, each given what it reads: residual blocks the embedding, transformers the context."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, mask)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """(B, C, h, w), network time (B,), conditioning -> (B, out_channels, h, w).

    - ``in_channels`` counts the latent and the spatial condition together (9 for SD's inpainting: 4 + 1 + 4).
    - ``attention_factors``: down-factors (1, 2, 4, ...) at which residual blocks are followed by attention; the
      middle always has it. With ``context_dim`` it is a transformer of ``transformer_depth`` blocks (one number, or
      one per level) that reads ``cond.tokens``; without, LDM's plain self-attention block.
    - Heads: either their number (``heads``, SD 1) or the width of each (``head_width``, LDM and SD 2).
    - ``vector_dim``: width of ``cond.vector``, added to the time embedding through SDXL's two-layer label_emb.
    - ``patch`` > 1 folds patch x patch positions into channels before the first convolution and unfolds them after
      the last; 1 is LDM. ``norm_groups`` is exact where it divides a layer's channels (see ``nn.norms``).
    - ``position_embedding``: add a fixed embedding of its place to every position after the first convolution; without
      it (LDM) places are known through the convolutions' zero padding alone, which a short training hardly learns.
    - Attribute ``factor``: height and width of the input must be multiples of it.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        attention_factors: Sequence[int],
        context_dim: int | None,
        head_width: int | None = None,
        heads: int | None = None,
        transformer_depth: int | Sequence[int] = 1,
        use_linear: bool = False,
        vector_dim: int | None = None,
        dropout: float = 0.0,
        patch: int = 1,
        position_embedding: bool = False,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_multipliers]
        depths = [transformer_depth] * len(widths) if isinstance(transformer_depth, int) else list(transformer_depth)
        _check(len(widths), attention_factors, depths, heads, head_width)
        self.in_channels, self.context_dim, self.vector_dim = in_channels, context_dim, vector_dim
        self.channels = channels
        self.patch = patch
        self.position_embedding = position_embedding
        self.factor = patch * 2 ** (len(widths) - 1)
        embedding = 4 * channels
        self.time_embed = _two_layers(channels, embedding)
        if vector_dim is not None:
            self.label_emb = nn.Sequential(_two_layers(vector_dim, embedding))

        parts = _Parts(
            widths=widths,
            depths=depths,
            attention_factors=attention_factors,
            embedding=embedding,
            context_dim=context_dim,
            heads=heads,
            head_width=head_width,
            use_linear=use_linear,
            norm_groups=norm_groups,
            dropout=dropout,
        )
        first = nn.Conv2d(in_channels * patch**2, channels, 3, padding=1)
        self.input_blocks, skips = _input_blocks(parts, first, num_res_blocks)
        self.middle_block = _middle_block(parts)
        self.output_blocks = _output_blocks(parts, skips, num_res_blocks)
        last = zero_(nn.Conv2d(widths[0], out_channels * patch**2, 3, padding=1))
        self.out = nn.Sequential(GroupNorm(widths[0], norm_groups), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Raises InputError where the input or the conditioning does not fit the constructor's numbers."""
        x = self._join(x, cond)
        dtype = self.time_embed[0].weight.dtype
        emb = self.time_embed(timestep_embedding(t, self.channels).to(dtype))
        if self.vector_dim is not None:
            emb = emb + self.label_emb(cond.vector)
        if self.patch > 1:
            x = F.pixel_unshuffle(x, self.patch)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb, cond.tokens, cond.mask)
            if self.position_embedding and not skips:
                x = x + position_embedding(*x.shape[-2:], self.channels, x.device).to(x.dtype)
            skips.append(x)
        x = self.middle_block(x, emb, cond.tokens, cond.mask)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb, cond.tokens, cond.mask)
        x = self.out(x)
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x

    def _join(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The latent and the spatial condition along the channels, after checking all shapes."""
        for name, part, width in (
            ("tokens", cond.tokens, self.context_dim),
            ("vector", cond.vector, self.vector_dim),
        ):
            found = None if part is None else part.shape[-1]
            if found != width:
                raise InputError(
                    f"UNet: the conditioning's {name} have width {found}, the UNet was built for {width}; "
                    "make the conditioner and the backbone agree (context_dim, vector_dim)"
                )
        if cond.spatial is not None:
            if cond.spatial.shape[-2:] != x.shape[-2:]:
                raise InputError(
                    f"UNet: the spatial condition is {tuple(cond.spatial.shape[-2:])}, "
                    f"the latent {tuple(x.shape[-2:])}; resize it to the latent's size"
                )
            x = torch.cat([x, cond.spatial.to(x.dtype)], dim=1)
        if x.shape[1] != self.in_channels:
            raise InputError(
                f"UNet: latent and spatial condition together have {x.shape[1]} channels, "
                f"in_channels is {self.in_channels}"
            )
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise InputError(
                f"UNet: height and width of the latent must be multiples of {self.factor}, got {tuple(x.shape[-2:])}; "
                "change the image size or use fewer levels"
            )
        return x


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """Builds the layers of each level."""

    widths: Sequence[int]
    depths: Sequence[int]
    attention_factors: Sequence[int]
    embedding: int
    context_dim: int | None
    heads: int | None
    head_width: int | None
    use_linear: bool
    norm_groups: int
    dropout: float

    def res(self, before: int, width: int) -> ResBlock:
        return ResBlock(
            in_channels=before,
            out_channels=width,
            embedding=self.embedding,
            norm_groups=self.norm_groups,
            dropout=self.dropout,
        )

    def attention(self, level: int) -> nn.Module:
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

    def layers(self, before: int, level: int) -> list[nn.Module]:
        """A residual block to the level's width, with attention behind it where the level has it."""
        block = self.res(before, self.widths[level])
        return [block, self.attention(level)] if 2**level in self.attention_factors else [block]


def _input_blocks(parts: _Parts, first: nn.Conv2d, num_res_blocks: int) -> tuple[nn.ModuleList, list[int]]:
    """The descending half and the width of each of its outputs."""
    blocks, skips = nn.ModuleList([Stage(first)]), [first.out_channels]
    for level, width in enumerate(parts.widths):
        for _ in range(num_res_blocks):
            blocks.append(Stage(*parts.layers(skips[-1], level)))
            skips.append(width)
        if level < len(parts.widths) - 1:
            blocks.append(Stage(Downsample(width)))
            skips.append(width)
    return blocks, skips


def _middle_block(parts: _Parts) -> Stage:
    width, lowest = parts.widths[-1], len(parts.widths) - 1
    return Stage(parts.res(width, width), parts.attention(lowest), parts.res(width, width))


def _output_blocks(parts: _Parts, skips: list[int], num_res_blocks: int) -> nn.ModuleList:
    """The ascending half; each block also reads the output of the descending half's block opposite to it."""
    blocks, skips, now = nn.ModuleList(), list(skips), skips[-1]
    for level, width in reversed(list(enumerate(parts.widths))):
        for i in range(num_res_blocks + 1):
            layers = parts.layers(now + skips.pop(), level)
            if level > 0 and i == num_res_blocks:
                layers.append(Upsample(width))
            blocks.append(Stage(*layers))
            now = width
    return blocks


def _two_layers(width: int, embedding: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))


def _head_count(width: int, heads: int | None, head_width: int | None) -> int:
    count = heads if heads is not None else width // head_width
    if count == 0 or width % count or head_width not in (None, width // count):
        raise InputError(
            f"UNet: a level of {width} channels cannot be split evenly into heads (heads={heads}, "
            f"head_width={head_width}); choose a number that divides every level's channels"
        )
    return count


def _check(
    levels: int, attention_factors: Sequence[int], depths: Sequence[int], heads: int | None, head_width: int | None
) -> None:
    if (heads is None) == (head_width is None):
        raise InputError(f"UNet: give exactly one of heads and head_width, got {heads} and {head_width}")
    known = [2**i for i in range(levels)]
    if strange := [f for f in attention_factors if f not in known]:
        raise InputError(f"UNet: attention_factors {strange} name no level; the down-factors are {known}")
    if len(depths) != levels:
        raise InputError(f"UNet: transformer_depth has {len(depths)} entries for {levels} levels")
