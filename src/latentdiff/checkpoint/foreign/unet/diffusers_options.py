"""What ``config.json`` of diffusers' UNets may say: names, defaults, and what is possible here."""

from __future__ import annotations

import json
from pathlib import Path

from latentdiff.config.errors import InputError

WITH_CONTEXT, WITHOUT = "UNet2DConditionModel", "UNet2DModel"

CLASS_EMBEDDING, ADD_EMBEDDING = "class_embedding", "add_embedding"
"""What embeds the pooled vector: of class_embed_type "projection", and SDXL's of addition_embed_type "text_time"."""

DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "attention_head_dim": 8,
    "num_class_embeds": None,
    "class_embed_type": None,
    "resnet_time_scale_shift": "default",
}
"""What diffusers takes for a key that is not there; what follows is of one class."""

OWN_DEFAULTS: dict[str, dict[str, object]] = {
    WITH_CONTEXT: {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
        "addition_embed_type": None,
        "projection_class_embeddings_input_dim": None,
    },
    WITHOUT: {
        "block_out_channels": [224, 448, 672, 896],
        "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
        "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
        "downsample_type": "conv",
        "upsample_type": "conv",
        "attn_norm_num_groups": None,
    },
}

FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "downsample_padding": (1,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "time_embedding_type": ("positional",),
}
"""What this UNet computes and has no option for; the first is diffusers' default."""

OWN_FIXED: dict[str, dict[str, tuple[object, ...]]] = {
    WITH_CONTEXT: {
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "num_attention_heads": (None,),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "reverse_transformer_layers_per_block": (None,),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
    },
    WITHOUT: {"add_attention": (True,), "mid_block_type": ("UNetMidBlock2D",)},
}

KINDS = {WITH_CONTEXT: ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), WITHOUT: ("AttnDownBlock2D", "AttnUpBlock2D")}
PLAIN, RESIDUAL = ("DownBlock2D", "UpBlock2D"), ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
RESAMPLING = {"conv": False, "resnet": True}

_COUNTS = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")


def load(path: Path) -> dict:
    """The configuration with its defaults.

    Raises InputError where the file is no such configuration, or one of a UNet that we cannot build.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"'{path}' is no readable JSON ({error}); copy the folder again") from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in OWN_DEFAULTS:
        raise InputError(
            f"'{path}' has the _class_name {kind!r}; expected the configuration of a {WITH_CONTEXT} or a {WITHOUT}"
        )
    fixed = {name: values[0] for name, values in (FIXED | OWN_FIXED[kind]).items()}
    config = {**fixed, **DEFAULTS, **OWN_DEFAULTS[kind], **config}
    _check(config, path)
    return config


def _check(config: dict, path: Path) -> None:
    kind = config["_class_name"]
    faults = [(k, "a whole number of at least 1") for k in _COUNTS if not _is_count(config[k])]
    fixed = (FIXED | OWN_FIXED[kind]).items()
    faults += [(k, " or ".join(map(str, allowed))) for k, allowed in fixed if _one(config[k]) not in allowed]
    faults += _level_faults(config, kind)
    if config["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        faults.append(("resnet_time_scale_shift", "default or scale_shift"))
    if config["num_class_embeds"] is not None and not _is_count(config["num_class_embeds"]):
        faults.append(("num_class_embeds", "a whole number of at least 1"))
    if config["class_embed_type"] not in ((None, "projection") if kind == WITH_CONTEXT else (None,)):
        faults.append(("class_embed_type", "projection, or none"))
    if config.get("time_embedding_dim") not in (None, 4 * _first(config["block_out_channels"])):
        faults.append(("time_embedding_dim", "4 times the first of block_out_channels"))
    faults += _context_faults(config) if kind == WITH_CONTEXT else _plain_faults(config)
    if faults:
        told = "; ".join(f"{key}: expected {wanted}, got {config[key]!r}" for key, wanted in faults)
        raise InputError(f"'{path}' describes a UNet that cannot be built here: {told}")


def _level_faults(config: dict, kind: str) -> list[tuple[str, str]]:
    widths, down, up = (config[key] for key in ("block_out_channels", "down_block_types", "up_block_types"))
    if not isinstance(widths, list) or not widths or not all(map(_is_count, widths)):
        return [("block_out_channels", "a list of widths")]
    if _is_count(groups := config["norm_num_groups"]) and any(width % groups for width in widths):
        return [("norm_num_groups", f"a divisor of the widths {widths}")]
    attention, plain = KINDS[kind], [PLAIN] if kind == WITH_CONTEXT else [PLAIN, RESIDUAL]
    downs, ups = ([attention[i], *(names[i] for names in plain)] for i in (0, 1))
    if not isinstance(down, list) or len(down) != len(widths) or any(name not in downs for name in down):
        return [("down_block_types", f"{len(widths)} of {', '.join(downs)}")]
    mirrored = [name == attention[0] for name in reversed(down)]
    if not isinstance(up, list) or any(n not in ups for n in up) or [n == attention[1] for n in up] != mirrored:
        return [("up_block_types", f"the mirror image of down_block_types {down}")]
    return []


def _context_faults(config: dict) -> list[tuple[str, str]]:
    faults, levels = [], len(config["down_block_types"])
    for key in ("attention_head_dim", "transformer_layers_per_block"):
        values = config[key] if isinstance(config[key], list) else [config[key]] * levels
        if len(values) != levels or not all(map(_is_count, values)):
            faults.append((key, f"a whole number of at least 1, or {levels} of them"))
    if not _is_count(config["cross_attention_dim"]):
        faults.append(("cross_attention_dim", "a whole number of at least 1"))
    if not isinstance(config["use_linear_projection"], bool):
        faults.append(("use_linear_projection", "true or false"))
    if config["addition_embed_type"] not in (None, "text_time"):
        faults.append(("addition_embed_type", "text_time, or none"))
    embeds = config["class_embed_type"] == "projection" or config["addition_embed_type"] is not None
    if embeds and not _is_count(config["projection_class_embeddings_input_dim"]):
        faults.append(("projection_class_embeddings_input_dim", "a whole number of at least 1"))
    return faults


def _plain_faults(config: dict) -> list[tuple[str, str]]:
    faults = [(k, " or ".join(RESAMPLING)) for k in ("downsample_type", "upsample_type") if config[k] not in RESAMPLING]
    if config["attention_head_dim"] is not None and not _is_count(config["attention_head_dim"]):
        faults.append(("attention_head_dim", "a whole number of at least 1, or none"))
    implied = None if config["resnet_time_scale_shift"] == "scale_shift" else config["norm_num_groups"]
    if (config["attn_norm_num_groups"] or implied) != config["norm_num_groups"]:
        faults.append(("attn_norm_num_groups", f"{config['norm_num_groups']}, as norm_num_groups"))
    return faults


def _one(value: object) -> object:
    """A list of equal values is their value."""
    return value[0] if isinstance(value, list) and value and all(v == value[0] for v in value) else value


def _first(widths: object) -> int:
    return widths[0] if isinstance(widths, list) and widths and _is_count(widths[0]) else 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
