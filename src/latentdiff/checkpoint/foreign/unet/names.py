"""The UNet's tensors under diffusers' names, and back; the attention without context in other shapes too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from latentdiff.checkpoint.foreign.unet.architecture import UNetArchitecture
from latentdiff.models.backbones.unet import UNet
from latentdiff.nn.attention import AttentionBlock, SpatialTransformer
from latentdiff.nn.resnet import Downsample, ResBlock

_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
_QKV = ("to_q", "to_k", "to_v")
_TWO_LAYERS = {"0": "linear_1", "2": "linear_2"}


def tensor_names(architecture: UNetArchitecture, vector: str) -> list[tuple[str, tuple[str, ...]]]:
    """Pairs of a name in LDM's files and that in diffusers' files; three for q, k and v, which LDM keeps in one.

    ``vector``: diffusers' name of what embeds the pooled vector, ``class_embedding`` or ``add_embedding``.
    """
    pairs = []
    for ours, theirs, module in _modules(architecture, vector):
        for name, inner in _inner(module).items():
            ends = _leaves(module, name)
            pairs += [(_joined(ours, name, end), tuple(_joined(theirs, i, end) for i in inner)) for end in ends]
    return pairs


def to_diffusers(weights: Mapping[str, Tensor], architecture: UNetArchitecture, vector: str) -> dict[str, Tensor]:
    """LDM's tensors under diffusers' names; ``architecture`` must know its heads."""
    found = {}
    for ours, theirs in tensor_names(architecture, vector):
        value = weights[ours]
        if len(theirs) == 3:
            rows = value.flatten(1) if value.ndim > 1 else value
            parts = rows.unflatten(0, (_heads_of(ours, architecture), 3, -1)).unbind(1)
            found |= {name: part.flatten(0, 1) for name, part in zip(theirs, parts)}
        else:
            found[theirs[0]] = value.flatten(1) if _is_flat(theirs[0], architecture) else value
    return found


def from_diffusers(tensors: Mapping[str, Tensor], architecture: UNetArchitecture, vector: str) -> dict[str, Tensor]:
    """The reverse of ``to_diffusers``."""
    found = {}
    for ours, theirs in tensor_names(architecture, vector):
        if len(theirs) == 3:
            heads = _heads_of(ours, architecture)
            value = torch.stack([tensors[name].unflatten(0, (heads, -1)) for name in theirs], 1).flatten(0, 2)
        else:
            value = tensors[theirs[0]]
        flat = len(theirs) == 3 or _is_flat(theirs[0], architecture)
        found[ours] = value[..., None] if flat and value.ndim == 2 else value
    return found


def _modules(architecture: UNetArchitecture, vector: str) -> Iterator[tuple[str, str, nn.Module]]:
    """(name here, name there, module) of every layer."""
    unet, per_level = architecture.on_meta(), architecture.num_res_blocks + 1
    yield "time_embed", "time_embedding", unet.time_embed
    if architecture.vector_dim is not None:
        yield "label_emb.0", vector, unet.label_emb[0]
    if architecture.num_classes is not None:
        yield "label_emb", "class_embedding", unet.label_emb
    yield "input_blocks.0.0", "conv_in", unet.input_blocks[0][0]
    yield from _descending(unet, per_level)
    for place, there in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{place}", f"mid_block.{there}", unet.middle_block[place]
    yield from _ascending(unet, per_level)
    yield "out.0", "conv_norm_out", unet.out[0]
    yield "out.2", "conv_out", unet.out[2]


def _descending(unet: UNet, per_level: int) -> Iterator[tuple[str, str, nn.Module]]:
    for block, stage in enumerate(unet.input_blocks[1:]):
        (level, place), ours = divmod(block, per_level), f"input_blocks.{block + 1}"
        there = "downsamplers.0" if place == per_level - 1 else f"resnets.{place}"
        yield f"{ours}.0", f"down_blocks.{level}.{there}", stage[0]
        if len(stage) > 1:
            yield f"{ours}.1", f"down_blocks.{level}.attentions.{place}", stage[1]


def _ascending(unet: UNet, per_level: int) -> Iterator[tuple[str, str, nn.Module]]:
    for block, stage in enumerate(unet.output_blocks):
        (level, place), ours = divmod(block, per_level), f"output_blocks.{block}"
        yield f"{ours}.0", f"up_blocks.{level}.resnets.{place}", stage[0]
        for i, layer in enumerate(stage[1:], start=1):
            is_attention = isinstance(layer, AttentionBlock | SpatialTransformer)
            there = f"attentions.{place}" if is_attention else "upsamplers.0"
            yield f"{ours}.{i}", f"up_blocks.{level}.{there}", layer


def _inner(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of a part of ``module`` that has tensors -> its names there."""
    if isinstance(module, AttentionBlock):
        return {name: (there,) for name, there in _ATTENTION.items()} | {"qkv": _QKV}
    if isinstance(module, ResBlock):
        same = {"skip_connection"} if isinstance(module.skip_connection, nn.Identity) else set()
        return {name: (there,) for name, there in _RES_BLOCK.items() if name not in same}
    if isinstance(module, Downsample):
        return {"op": ("conv",)}
    if isinstance(module, nn.Sequential):
        return {name: (there,) for name, there in _TWO_LAYERS.items()}
    return {"": ("",)}


def _leaves(module: nn.Module, name: str) -> list[str]:
    return list(module.get_submodule(name).state_dict())


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _is_flat(name: str, architecture: UNetArchitecture) -> bool:
    """Whether it is a linear layer there and a convolution of width 1 here."""
    return architecture.context_dim is None and name.endswith(".to_out.0.weight")


def _heads_of(name: str, architecture: UNetArchitecture) -> int:
    """Of the attention that the tensor ``name`` belongs to."""
    half, block = name.split(".")[:2]
    levels, per_level = len(architecture.widths), architecture.num_res_blocks + 1
    if half == "middle_block":
        return architecture.heads[-1]
    level = (int(block) - 1) // per_level if half == "input_blocks" else levels - 1 - int(block) // per_level
    return architecture.heads[level]
