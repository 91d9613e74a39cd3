"""The diffusion transformer (DiT, arXiv:2212.09748), with cross-attention for text and today's options."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from latentdiff.config.errors import InputError
from latentdiff.nn.dit_blocks import DiTBlock, FinalLayer, xavier_
from latentdiff.nn.embeddings import position_embedding, timestep_embedding
from latentdiff.nn.inputs import joined_input
from latentdiff.nn.rotary import rotary_table
from latentdiff.types import Conditioning

FREQUENCIES = 256
"""Width of the sinusoidal embedding of the network time."""


class DiT(nn.Module):
    """(B, C, h, w), network time (B,), conditioning -> (B, out_channels, h, w).

    Patches of the latent are tokens of ``width`` features; ``depth`` blocks with adaLN-Zero (section 3.2), modulated by
    the sum of the embeddings of time, class and vector; a last modulated layer makes patches of the tokens. A new model
    answers 0, each of its blocks is the identity. The variance is not learned.

    - ``in_channels`` counts the latent and the spatial condition together.
    - ``patch``: side of a patch; height and width of the input must be multiples of it (attribute ``factor``).
    - ``context_dim``: width of ``cond.tokens``, which every block reads through cross-attention (arXiv:2310.00426).
    - ``vector_dim``: width of ``cond.vector``, added through two layers.
    - ``num_classes``: rows of the table of which ``cond.label`` (int64 (B,), 0 to num_classes - 1) picks what is added.
      "No class" is a row like any other, the last (ImageNet: 1001).
    - Places: a fixed sine-cosine embedding added to the tokens (``nn.embeddings.position_embedding``), or with ``rope``
      queries and keys of the self-attention turned by row and column (``nn.rotary``).
    - ``qk_norm``, ``swiglu``: see ``nn.dit_blocks``. ``rms_norm``: RMSNorm in place of LayerNorm, both without weights.
      With ``rope`` all four are LightningDiT's (arXiv:2501.01423).
    - ``dropout``: of what each branch of a block adds; the paper has none.
    - ``checkpoint``: in training, keep each block's input alone and compute its inside again in the backward pass
      (arXiv:1604.06174): less memory for about a third more time, the same gradients.

    Raises InputError where ``heads`` do not divide ``width``, or where the features that tell a place (of the tokens;
    with ``rope``, of a head) are not divisible by 4.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int,
        depth: int,
        heads: int,
        patch: int = 2,
        context_dim: int | None = None,
        vector_dim: int | None = None,
        num_classes: int | None = None,
        qk_norm: bool = False,
        rope: bool = False,
        swiglu: bool = False,
        rms_norm: bool = False,
        dropout: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        _check_widths(width, depth, heads, patch, rope)
        self.in_channels, self.out_channels, self.width, self.heads = in_channels, out_channels, width, heads
        self.context_dim, self.vector_dim, self.num_classes = context_dim, vector_dim, num_classes
        self.patch, self.factor, self.rope, self.rms_norm, self.checkpoint = patch, patch, rope, rms_norm, checkpoint
        self.patch_embedding = xavier_(nn.Linear(in_channels * patch**2, width))
        self.time_embed = _two_layers(FREQUENCIES, width)
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes, width)
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        if vector_dim is not None:
            self.vector_embed = _two_layers(vector_dim, width)
        self.blocks = nn.ModuleList(
            DiTBlock(
                width=width,
                heads=heads,
                context_dim=context_dim,
                qk_norm=qk_norm,
                swiglu=swiglu,
                rms_norm=rms_norm,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(width=width, out_features=out_channels * patch**2, rms_norm=rms_norm)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Raises InputError where the input or the conditioning does not fit the constructor's numbers."""
        x = joined_input(
            x,
            cond,
            name="DiT",
            in_channels=self.in_channels,
            factor=self.factor,
            context_dim=self.context_dim,
            vector_dim=self.vector_dim,
            num_classes=self.num_classes,
        )
        emb = self._embedding(t, cond)
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        # under autocast the sum of all blocks stays in the weights' precision
        x = self.patch_embedding(_tokens(F.pixel_unshuffle(x, self.patch))).to(self.patch_embedding.weight.dtype)
        rotary = None
        if self.rope:
            rotary = rotary_table(rows, columns, self.width // self.heads, x.device)
        else:
            x = x + _tokens(position_embedding(rows, columns, self.width, x.device)).to(x.dtype)
        for block in self.blocks:
            x = self._run(block, x, emb, cond, rotary)
        x = self.final_layer(x, emb).transpose(1, 2).unflatten(2, (rows, columns))
        return F.pixel_shuffle(x, self.patch)

    def _run(
        self, block: nn.Module, x: Tensor, emb: Tensor, cond: Conditioning, rotary: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        if self.checkpoint and self.training and torch.is_grad_enabled():
            return recomputed(block, x, emb, cond.tokens, cond.mask, rotary, use_reentrant=False)
        return block(x, emb, cond.tokens, cond.mask, rotary)

    def _embedding(self, t: Tensor, cond: Conditioning) -> Tensor:
        """Of the time, and of the class and the vector where there are: (B, width)."""
        dtype = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(timestep_embedding(t, FREQUENCIES).to(dtype))
        if self.num_classes is not None:
            emb = emb + self.class_embedding(cond.label).to(emb.dtype)
        if cond.vector is not None:
            emb = emb + self.vector_embed(cond.vector.to(dtype))
        return emb


def _tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C), row by row."""
    return maps.flatten(2).transpose(1, 2)


def _two_layers(width: int, embedding: int) -> nn.Sequential:
    """Weights start normal with deviation 0.02, as in the paper's code."""
    first, last = nn.Linear(width, embedding), nn.Linear(embedding, embedding)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.SiLU(), last)


def _check_widths(width: int, depth: int, heads: int, patch: int, rope: bool) -> None:
    if min(width, depth, heads, patch) < 1:
        raise InputError(
            f"DiT: expected width, depth, heads and patch of at least 1, got {width}, {depth}, {heads} and {patch}"
        )
    if width % heads:
        raise InputError(f"DiT: a width of {width} cannot be split evenly into {heads} heads; change one of them")
    place, features = ("a head", width // heads) if rope else ("width", width)
    if features % 4:
        raise InputError(
            f"DiT: expected {place} of a multiple of 4 features, half of which tell the row and half the column, got "
            f"{features}; change width{' or heads' if rope else ''}"
        )
