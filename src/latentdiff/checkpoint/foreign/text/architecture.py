"""What CLIP's text encoder is built from, as far as other programs' files can say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.checkpoint.foreign.text.names import NORM_EPS, PROJECTION, block_names, own_names
from latentdiff.checkpoint.foreign.weights import Shapes, check_names
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.config.errors import InputError

WHAT = "the text encoder"
"""In messages about names."""

VOCABULARY = 49408
"""Tokens that CLIP knows."""

PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 20}
"""Heads by width: CLIP ViT-L, ViT-H, ViT-bigG. The weights do not say them."""


@dataclass(frozen=True)
class TextArchitecture:
    """``hidden``: width inside the MLPs; ``projection``: width of the joint space, None where there is none."""

    width: int
    layers: int
    heads: int
    hidden: int
    context_length: int
    vocabulary: int
    quick_gelu: bool
    projection: int | None = None


@dataclass(frozen=True)
class ForeignText:
    """A text encoder that another program wrote.

    ``weights`` are under open_clip's names; ``path`` is the file they are in; ``block``, counted from the end, is the
    one whose output is read; ``pad_with_end``: prompts are filled up with the end token, not with token 0.
    """

    path: Path
    architecture: TextArchitecture
    weights: dict[str, Tensor]
    block: int
    pad_with_end: bool

    def until_read(self) -> ForeignText:
        """Without the blocks behind the one that is read, which then is the last."""
        layers = self.architecture.layers - self.block + 1
        names = own_names(layers, projection=self.architecture.projection is not None)
        kept = {name: self.weights[name] for name in names}
        return replace(self, architecture=replace(self.architecture, layers=layers), weights=kept, block=1)

    def with_one_behind(self) -> ForeignText:
        """With one block behind the one that is read, as readers of the penultimate want: where there is none, one
        whose outputs are zero is added."""
        if self.block >= 2:
            behind = self.architecture.layers - self.block + 2
            names = own_names(behind, projection=self.architecture.projection is not None)
            kept = {name: self.weights[name] for name in names}
            return replace(self, architecture=replace(self.architecture, layers=behind), weights=kept, block=2)
        layers = self.architecture.layers
        added = {
            there: torch.zeros_like(self.weights[here])
            for here, there in zip(block_names(layers - 1), block_names(layers))
        }
        architecture = replace(self.architecture, layers=layers + 1)
        return replace(self, architecture=architecture, weights=self.weights | added, block=2)


def infer(weights: Mapping[str, Tensor], path: Path, *, heads: int | None, quick_gelu: bool) -> TextArchitecture:
    """The architecture that weights under open_clip's names describe; every name is checked.

    ``heads`` None: those of the published model of this width. Raises InputError where there is none, where names are
    missing or surplus, and where sizes do not fit each other.
    """
    read = Shapes(weights, path, "a text encoder")
    layers = read.number("transformer.resblocks.{}.attn.in_proj_weight")
    check_names(own_names(layers, projection=PROJECTION in weights), weights, path, WHAT)
    vocabulary, width = read("token_embedding.weight")
    if vocabulary != VOCABULARY:
        raise InputError(
            f"'{path}': its text encoder knows {vocabulary} tokens, CLIP's vocabulary has {VOCABULARY}; added tokens "
            "(textual inversion) are not read"
        )
    if (heads := heads or PUBLISHED_HEADS.get(width)) is None:
        raise InputError(
            f"'{path}': its text encoder has width {width}, which is none of the published "
            f"({', '.join(map(str, PUBLISHED_HEADS))}), and such a file does not say the number of heads; give "
            "--text-heads N"
        )
    if width % heads:
        raise InputError(f"'{path}': {heads} heads do not divide the text encoder's width {width}")
    return TextArchitecture(
        width=width,
        layers=layers,
        heads=heads,
        hidden=read("transformer.resblocks.0.mlp.c_fc.weight")[0],
        context_length=read("positional_embedding")[0],
        vocabulary=vocabulary,
        quick_gelu=quick_gelu,
        projection=read(PROJECTION)[1] if PROJECTION in weights else None,
    )


def of_conditioner(conditioner: OpenClipText, path: Path) -> ForeignText:
    """The text encoder of one of ours. Raises InputError where it is none that other programs know as CLIP's."""
    clip = conditioner.clip
    found = {name: value for name, value in clip.state_dict().items() if not name.startswith(("visual.", "logit_"))}
    blocks = clip.transformer.resblocks if hasattr(clip, "transformer") else []
    activations = {type(block.mlp.gelu).__name__ for block in blocks}
    if (
        len(activations) != 1
        or activations - {"GELU", "QuickGELU"}
        or set(found) != set(own_names(len(blocks), projection=PROJECTION in found))
        or clip.ln_final.eps != NORM_EPS
        or clip.attn_mask is None
    ):
        raise InputError(
            f"the text encoder of '{path}' is none of plain CLIP's, the kind that is written; --unet-only writes the "
            "UNet alone"
        )
    heads = blocks[0].attn.num_heads
    architecture = infer(found, path, heads=heads, quick_gelu=activations == {"QuickGELU"})
    return ForeignText(path, architecture, found, conditioner.block, conditioner.pad_with_end)
