"""The tensors of CLIP's text encoder under open_clip's names and under those of transformers' CLIPTextModel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NORM_EPS = 1e-5

PROJECTION, HF_PROJECTION = "text_projection", "text_projection.weight"
"""To the joint space of texts and images; transposed there, and absent where only the states are read."""

HF_PREFIX = "text_model."
"""Before every other name in transformers' files; version 5 leaves it out."""

HF_UNUSED = ("embeddings.position_ids",)
"""Constants that older files hold."""

_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ENDS = ("weight", "bias")


def pairs(layers: int) -> list[tuple[str, tuple[str, ...]]]:
    """Name in open_clip and that in transformers; three there for q, k and v, which open_clip keeps in one tensor."""
    found: list[tuple[str, tuple[str, ...]]] = [(ours, (theirs,)) for ours, theirs in _OUTSIDE.items()]
    for i in range(layers):
        ours, theirs = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for end in _ENDS:
            found += [(f"{ours}.{a}.{end}", (f"{theirs}.{b}.{end}",)) for a, b in _BLOCK.items()]
            joined = tuple(f"{theirs}.self_attn.{part}_proj.{end}" for part in "qkv")
            found.append((f"{ours}.attn.in_proj_{end}", joined))
    return found


def own_names(layers: int, *, projection: bool) -> list[str]:
    """All of a text encoder's in open_clip."""
    return [ours for ours, _ in pairs(layers)] + ([PROJECTION] if projection else [])


def block_names(block: int) -> list[str]:
    """Those of one block in open_clip."""
    start = f"transformer.resblocks.{block}."
    return [ours for ours, _ in pairs(block + 1) if ours.startswith(start)]


def hf_names(layers: int, *, projection: bool) -> list[str]:
    """All in transformers, without ``HF_PREFIX``."""
    return [name for _, theirs in pairs(layers) for name in theirs] + ([HF_PROJECTION] if projection else [])


def from_hf(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """transformers' tensors, without ``HF_PREFIX``, under open_clip's names."""
    found = {ours: torch.cat([tensors[name] for name in theirs]) for ours, theirs in pairs(layers)}
    return found | ({PROJECTION: tensors[HF_PROJECTION].T} if HF_PROJECTION in tensors else {})


def to_hf(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The reverse of ``from_hf``, without the projection."""
    found = {}
    for ours, theirs in pairs(layers):
        found |= dict(zip(theirs, weights[ours].chunk(len(theirs))))
    return found
