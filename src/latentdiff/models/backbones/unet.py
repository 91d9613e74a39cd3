"""The UNet of latent diffusion and Stable Diffusion (arXiv:2112.10752, section 3.3; arXiv:2105.05233).

Parameter names and layout are the published ones: the weights of LDM, SD 1, SD 2 and SDXL load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from latentdiff.config.errors import InputError
from latentdiff.nn.attention import zero_
from latentdiff.nn.embeddings import position_embedding, timestep_embedding
from latentdiff.nn.inputs import joined_input
from latentdiff.nn.norms import GroupNorm
from latentdiff.nn.unet_stages import StageBuilder
from latentdiff.types import Conditioning


class UNet(nn.Module):
    """(B, C, h, w), network time (B,), conditioning -> (B, out_channels, h, w).

    - ``in_channels`` counts the latent and the spatial condition together (9 for SD's inpainting: 4 + 1 + 4).
    - ``attention_factors``: down-factors (1, 2, 4, ...) at which residual blocks are followed by attention; the
      middle always has it. With ``context_dim`` it is a transformer of ``transformer_depth`` blocks (one number, or
      one per level) that reads ``cond.tokens``; without, LDM's plain self-attention block.
    - Heads: either their number (``heads``, SD 1) or the width of each (``head_width``, LDM and SD 2).
    - ``vector_dim``: width of ``cond.vector``, added to the time embedding through SDXL's two-layer label_emb.
    - ``num_classes``: rows of ADM's table label_emb, of which ``cond.label`` (int64 (B,), 0 to num_classes - 1) picks
      what is added to the time embedding. "No class" is a row like any other: a model that is trained with condition
      dropout needs one row more than its data has classes, the last (ImageNet: 1001, as in LDM and DiT). Published
      files hold one label_emb, so ``vector_dim`` and ``num_classes`` exclude each other.
    - ``use_scale_shift_norm``, ``resblock_updown``: see ``nn.resnet.ResBlock``; the latter halves and doubles with
      residual blocks in place of single convolutions.
    - ``patch`` > 1 folds patch x patch positions into channels before the first convolution and unfolds them after
      the last; 1 is LDM. ``norm_groups`` is exact where it divides a layer's channels (see ``nn.norms``).
    - ``position_embedding``: add a fixed embedding of its place to every position after the first convolution; without
      it (LDM) places are known through the convolutions' zero padding alone, which a short training hardly learns.
    - ``checkpoint``: in training, keep each stage's input alone and compute its inside again in the backward pass
      (arXiv:1604.06174): less memory for about a third more time, the same gradients.
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
        num_classes: int | None = None,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        dropout: float = 0.0,
        patch: int = 1,
        position_embedding: bool = False,
        norm_groups: int = 32,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_multipliers]
        depths = [transformer_depth] * len(widths) if isinstance(transformer_depth, int) else list(transformer_depth)
        self.in_channels, self.out_channels, self.channels = in_channels, out_channels, channels
        self.context_dim, self.vector_dim, self.num_classes = context_dim, vector_dim, num_classes
        self.patch, self.position_embedding, self.checkpoint = patch, position_embedding, checkpoint
        self.factor = patch * 2 ** (len(widths) - 1)
        embedding = 4 * channels
        builder = StageBuilder(
            widths=widths,
            depths=depths,
            num_res_blocks=num_res_blocks,
            attention_factors=attention_factors,
            embedding=embedding,
            context_dim=context_dim,
            heads=heads,
            head_width=head_width,
            use_linear=use_linear,
            scale_shift=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            norm_groups=norm_groups,
            dropout=dropout,
        )
        self.time_embed = _two_layers(channels, embedding)
        if (label_emb := _label_embedding(vector_dim, num_classes, embedding)) is not None:
            self.label_emb = label_emb
        first = nn.Conv2d(in_channels * patch**2, channels, 3, padding=1)
        self.input_blocks, skips = builder.input_blocks(first)
        self.middle_block = builder.middle_block()
        self.output_blocks = builder.output_blocks(skips)
        last = zero_(nn.Conv2d(widths[0], out_channels * patch**2, 3, padding=1))
        self.out = nn.Sequential(GroupNorm(widths[0], norm_groups), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Raises InputError where the input or the conditioning does not fit the constructor's numbers."""
        x = joined_input(
            x,
            cond,
            name="UNet",
            in_channels=self.in_channels,
            factor=self.factor,
            context_dim=self.context_dim,
            vector_dim=self.vector_dim,
            num_classes=self.num_classes,
        )
        emb = self._embedding(t, cond)
        if self.patch > 1:
            x = F.pixel_unshuffle(x, self.patch)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = self._run(stage, x, emb, cond)
            if self.position_embedding and not skips:
                height, width = x.shape[-2:]
                x = x + position_embedding(height, width, self.channels, x.device).to(x.dtype)
            skips.append(x)
        x = self._run(self.middle_block, x, emb, cond)
        for stage in self.output_blocks:
            x = self._run(stage, x, emb, cond, skips.pop())
        x = self.out(x)
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x

    def _run(self, stage: nn.Module, x: Tensor, emb: Tensor, cond: Conditioning, skip: Tensor | None = None) -> Tensor:
        if self.checkpoint and self.training and torch.is_grad_enabled():
            return recomputed(stage, x, emb, cond.tokens, cond.mask, skip, use_reentrant=False)
        return stage(x, emb, cond.tokens, cond.mask, skip)

    def _embedding(self, t: Tensor, cond: Conditioning) -> Tensor:
        """Of the time, and of the class or the vector where there is one: (B, 4 * channels)."""
        dtype = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(timestep_embedding(t, self.channels).to(dtype))
        if self.vector_dim is not None:
            return emb + self.label_emb(cond.vector)
        if self.num_classes is not None:
            return emb + self.label_emb(cond.label).to(emb.dtype)
        return emb


def _label_embedding(vector_dim: int | None, num_classes: int | None, embedding: int) -> nn.Module | None:
    if vector_dim is not None and num_classes is not None:
        raise InputError(
            f"UNet: vector_dim ({vector_dim}) and num_classes ({num_classes}) are both given, but there is one "
            "label_emb; leave one out, or let the conditioner give the class as a part of the vector"
        )
    if num_classes is not None:
        return nn.Embedding(num_classes, embedding)
    return None if vector_dim is None else nn.Sequential(_two_layers(vector_dim, embedding))


def _two_layers(width: int, embedding: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
