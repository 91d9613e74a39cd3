"""What a UNet is built from, as far as other programs' files can say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from latentdiff.checkpoint.foreign.architecture import LDM_GROUPS, multipliers
from latentdiff.checkpoint.foreign.weights import Shapes
from latentdiff.config.errors import InputError
from latentdiff.models.backbones.unet import UNet
from latentdiff.nn.attention import AttentionBlock, CrossAttention

WHAT = "the UNet"
"""In messages about names."""


@dataclass(frozen=True)
class UNetArchitecture:
    """The constructor's numbers, per level the highest resolution first.

    ``heads`` are numbers of heads, 0 where a level has no attention (the lowest has the middle's); None where a file
    does not say them. ``transformer_depth`` is 0 where there is no transformer.
    """

    in_channels: int
    out_channels: int
    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_factors: tuple[int, ...]
    context_dim: int | None
    heads: tuple[int, ...] | None
    transformer_depth: tuple[int, ...]
    use_linear: bool = False
    vector_dim: int | None = None
    num_classes: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    norm_groups: int = LDM_GROUPS

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.channel_multipliers)

    @property
    def head_widths(self) -> tuple[int, ...] | None:
        """Per level, 0 where it has no attention."""
        return None if self.heads is None else tuple(w // n if n else 0 for w, n in zip(self.widths, self.heads))

    def on_meta(self) -> UNet:
        """The UNet without memory for its weights, for its names and shapes: of the heads these say nothing."""
        with torch.device("meta"):
            return UNet(
                in_channels=self.in_channels,
                out_channels=self.out_channels,
                channels=self.channels,
                channel_multipliers=self.channel_multipliers,
                num_res_blocks=self.num_res_blocks,
                attention_factors=self.attention_factors,
                context_dim=self.context_dim,
                heads=1,
                transformer_depth=self.transformer_depth,
                use_linear=self.use_linear,
                vector_dim=self.vector_dim,
                num_classes=self.num_classes,
                use_scale_shift_norm=self.use_scale_shift_norm,
                resblock_updown=self.resblock_updown,
                norm_groups=self.norm_groups,
            )

    def differences(self, other: UNetArchitecture) -> list[str]:
        """What ``other`` has otherwise, in words; the heads only where both are known."""
        return [
            f"{name} {mine} there, {theirs} here"
            for name in (f.name for f in fields(self))
            if (mine := getattr(self, name)) != (theirs := getattr(other, name))
            and (name != "heads" or None not in (mine, theirs))
        ]


@dataclass(frozen=True)
class ForeignUNet:
    """A UNet that another program wrote: ``weights`` under LDM's names, ``path`` the file they are in."""

    path: Path
    architecture: UNetArchitecture
    weights: dict[str, Tensor]


def of_module(unet: UNet) -> UNetArchitecture:
    """The architecture of one of ours.

    Raises InputError for what no other program's format can say: a folded latent, an embedding of the positions, norms
    of several numbers of groups.
    """
    if unet.patch > 1:
        raise InputError(
            f"this UNet folds {unet.patch}x{unet.patch} positions into channels (backbone.patch), which neither LDM's "
            "nor diffusers' format knows; only patch 1 can be exchanged with other programs"
        )
    if unet.position_embedding:
        raise InputError(
            "this UNet adds an embedding of the positions (backbone.position_embedding), which neither LDM's nor "
            "diffusers' format knows; only position_embedding: false can be exchanged with other programs"
        )
    groups = {module.num_groups for module in unet.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        raise InputError(
            f"the norms of this UNet have {' and '.join(map(str, sorted(groups)))} groups: norm_groups does not divide "
            "the width of every layer, and other programs' formats know one number for all layers"
        )
    found = infer(unet.state_dict(), Path("UNet"))
    known = {name: getattr(found, name) for name in (f.name for f in fields(found))}
    return UNetArchitecture(**known | {"heads": _heads(unet, found), "norm_groups": groups.pop()})


def infer(weights: Mapping[str, Tensor], path: Path) -> UNetArchitecture:
    """The architecture that weights under LDM's names describe; they do not say the heads.

    Raises InputError where a tensor that says a part of it is missing, or where it is none that we can build.
    """
    read = Shapes(weights, path, "a UNet")
    channels, in_channels = read("input_blocks.0.0.weight")[:2]
    blocks = read.number("output_blocks.{}.0.in_layers.2.weight")
    # a resampling residual block has the tensors of any other: it shows where it is the second of its stage
    doubled = [i for i in range(blocks) if _has_any(weights, i, "{}.conv.weight", "{}.in_layers.2.weight")]
    by_block = any(_has_any(weights, i, "{}.in_layers.2.weight") for i in doubled)
    levels = len(doubled) + 1
    per_level = blocks // levels
    if blocks % levels or per_level < 2:
        raise InputError(
            f"'{path}': {blocks} output blocks on {levels} levels; a UNet has as many on each level, and at least 2"
        )
    firsts = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
    widths = [read(f"{first}.0.out_layers.3.weight")[0] for first in firsts]
    attention = tuple(2**i for i, first in enumerate(firsts) if f"{first}.1.norm.weight" in weights)
    middle, context = "middle_block.1", "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    depths = [read.number(f"{first}.1.transformer_blocks.{{}}.norm1.weight") for first in firsts]
    depths[-1] = read.number(f"{middle}.transformer_blocks.{{}}.norm1.weight")
    vector, classes = "label_emb.0.0.weight", "label_emb.weight"
    return UNetArchitecture(
        in_channels=in_channels,
        out_channels=read("out.2.weight")[0],
        channels=channels,
        channel_multipliers=multipliers(widths, channels, path),
        num_res_blocks=per_level - 1,
        attention_factors=attention,
        context_dim=read(context)[1] if context in weights else None,
        heads=None,
        transformer_depth=tuple(depths),
        use_linear=context in weights and len(read(f"{middle}.proj_in.weight")) == 2,
        vector_dim=read(vector)[1] if vector in weights else None,
        num_classes=read(classes)[0] if classes in weights else None,
        use_scale_shift_norm=read(f"{firsts[0]}.0.emb_layers.1.weight")[0] == 2 * widths[0],
        resblock_updown=by_block,
    )


def _heads(unet: UNet, found: UNetArchitecture) -> tuple[int, ...]:
    stages = [unet.input_blocks[1 + level * (found.num_res_blocks + 1)] for level in range(len(found.widths) - 1)]
    return tuple(_heads_of(stage) for stage in (*stages, unet.middle_block))


def _heads_of(stage: nn.Module) -> int:
    return next((m.heads for m in stage.modules() if isinstance(m, AttentionBlock | CrossAttention)), 0)


def _has_any(weights: Mapping[str, Tensor], block: int, *patterns: str) -> bool:
    """Whether the output block has such a tensor in a layer behind its first."""
    return any(f"output_blocks.{block}.{p.format(place)}" in weights for p in patterns for place in (1, 2))
