"""``config.json`` of diffusers' AutoencoderKL and VQModel: architecture, and the scale of the latents."""

from __future__ import annotations

import json
from pathlib import Path

from latentdiff.checkpoint.foreign.architecture import Architecture, multipliers
from latentdiff.checkpoint.foreign.statistics import Statistics, checked
from latentdiff.config.errors import InputError

CONFIG = "config.json"

KL, VQ = "AutoencoderKL", "VQModel"

DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_type": "group",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
"""What diffusers takes for a key that is not there."""

OWN_DEFAULTS = {
    KL: {"latent_channels": 4, "scaling_factor": 0.18215},
    VQ: {"latent_channels": 3, "scaling_factor": None, "num_vq_embeddings": 256, "vq_embed_dim": None},
}
"""VQModel's scaling factor without one is 0.18215 too, but LDM's VQ models, which it was made for, have none."""

COUNTS = ("in_channels", "layers_per_block", "latent_channels", "norm_num_groups")

_PLAIN, _ATTENTION = ("DownEncoderBlock2D", "UpDecoderBlock2D"), ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")


def read(path: Path) -> tuple[Architecture, Statistics | None]:
    """The architecture, and the scale of the latents where it is there.

    Raises InputError where the file is no such configuration, or one of an autoencoder that we cannot build.
    """
    config = _load(path)
    _check(config, path)
    factors = [2**i for i in range(len(config["block_out_channels"]))]
    attention = tuple(f for f, kind in zip(factors, config["down_block_types"]) if kind == _ATTENTION[0])
    is_vq = config["_class_name"] == VQ
    z_channels = config["latent_channels"]
    architecture = Architecture(
        image_channels=config["in_channels"],
        channels=config["block_out_channels"][0],
        channel_multipliers=multipliers(config["block_out_channels"], config["block_out_channels"][0], path),
        num_res_blocks=config["layers_per_block"],
        z_channels=z_channels,
        embed_dim=(config["vq_embed_dim"] or z_channels) if is_vq else z_channels,
        attention_factors=attention,
        mid_attention=bool(config["mid_block_add_attention"]),
        quant_conv=is_vq or bool(config["use_quant_conv"]),
        post_quant_conv=is_vq or bool(config["use_post_quant_conv"]),
        norm_groups=config["norm_num_groups"],
        codebook=config["num_vq_embeddings"] if is_vq else None,
    )
    return architecture, _statistics(config, architecture.embed_dim, path)


def describe(architecture: Architecture, statistics: Statistics, sample_size: int | None = None) -> dict:
    """The configuration with which diffusers builds ``architecture``; one scale and shift where they are exact.

    Raises InputError where diffusers has no such autoencoder.
    """
    _check_expressible(architecture)
    is_vq = architecture.codebook is not None
    factors = [2**i for i in range(len(architecture.channel_multipliers))]
    down, up = ([kind[f in architecture.attention_factors] for f in factors] for kind in zip(_PLAIN, _ATTENTION))
    config: dict = {
        "_class_name": VQ if is_vq else KL,
        "act_fn": "silu",
        "block_out_channels": [architecture.channels * m for m in architecture.channel_multipliers],
        "down_block_types": down,
        "in_channels": architecture.image_channels,
        "latent_channels": architecture.z_channels,
        "layers_per_block": architecture.num_res_blocks,
        "mid_block_add_attention": architecture.mid_attention,
        "norm_num_groups": architecture.norm_groups,
        "out_channels": architecture.image_channels,
        "up_block_types": up[::-1],
    }
    if is_vq:
        config |= {"num_vq_embeddings": architecture.codebook, "vq_embed_dim": architecture.embed_dim}
    else:
        config |= {"use_quant_conv": architecture.quant_conv, "use_post_quant_conv": architecture.post_quant_conv}
    if sample_size is not None:
        config["sample_size"] = sample_size
    return config | _scale(statistics)


def _scale(statistics: Statistics) -> dict:
    factors = statistics.factors()
    if factors is None:
        return {"scaling_factor": 1.0, "latents_mean": list(statistics.mean), "latents_std": list(statistics.std)}
    scale, shift = factors
    return {"scaling_factor": scale} | ({"shift_factor": shift} if shift else {})


def _check_expressible(architecture: Architecture) -> None:
    if (first := architecture.channel_multipliers[0]) != 1:
        raise InputError(
            f"the first level of this autoencoder is {first} times as wide as its first convolution; in diffusers "
            "both have one width, so it can only be exported with --format ldm"
        )
    if architecture.codebook is None and architecture.embed_dim != architecture.z_channels:
        raise InputError(
            f"this autoencoder's latents have {architecture.embed_dim} channels and its encoder writes "
            f"{architecture.z_channels} (embed_dim, latent_channels); in diffusers' AutoencoderKL both are one number, "
            "so it can only be exported with --format ldm"
        )
    if architecture.codebook is not None and not (architecture.quant_conv and architecture.post_quant_conv):
        raise InputError("diffusers' VQModel always has quant_conv and post_quant_conv, this autoencoder has not both")


def _load(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"'{path}' is no readable JSON ({error}); copy the folder again") from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in OWN_DEFAULTS:
        raise InputError(f"'{path}' has the _class_name {kind!r}; expected the configuration of an {KL} or a {VQ}")
    return DEFAULTS | OWN_DEFAULTS[kind] | config


def _check(config: dict, path: Path) -> None:
    widths, down, up = (config[key] for key in ("block_out_channels", "down_block_types", "up_block_types"))
    counts = [*COUNTS, "num_vq_embeddings"] if config["_class_name"] == VQ else COUNTS
    faults = [(key, "a whole number of at least 1") for key in counts if not _is_count(config[key])]
    if not isinstance(widths, list) or not widths or not all(map(_is_count, widths)):
        faults.append(("block_out_channels", "a list of widths"))
    elif _is_count(groups := config["norm_num_groups"]) and any(width % groups for width in widths):
        faults.append(("norm_num_groups", f"a divisor of the widths {widths}"))
    elif (
        not isinstance(down, list) or len(down) != len(widths) or any(k not in (_PLAIN[0], _ATTENTION[0]) for k in down)
    ):
        faults.append(("down_block_types", f"{len(widths)} of {_PLAIN[0]} and {_ATTENTION[0]}"))
    elif up != [(_PLAIN[1], _ATTENTION[1])[kind == _ATTENTION[0]] for kind in reversed(down)]:
        faults.append(("up_block_types", f"the mirror image of down_block_types {down}"))
    faults += [(k, "a list") for k in ("latents_mean", "latents_std") if not isinstance(config[k], list | None)]
    flags = [k for k in ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv") if k in config]
    faults += [(k, "true or false") for k in flags if not isinstance(config[k], bool)]
    if config.get("vq_embed_dim") is not None and not _is_count(config["vq_embed_dim"]):
        faults.append(("vq_embed_dim", "a whole number of at least 1"))
    if config["act_fn"] not in ("silu", "swish"):
        faults.append(("act_fn", "silu"))
    if config["norm_type"] != "group":
        faults.append(("norm_type", "group"))
    if config["out_channels"] != config["in_channels"]:
        faults.append(("out_channels", f"{config['in_channels']}, as in_channels"))
    if faults:
        told = "; ".join(f"{key}: expected {wanted}, got {config[key]!r}" for key, wanted in faults)
        raise InputError(f"'{path}' describes an autoencoder that cannot be built here: {told}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _statistics(config: dict, channels: int, path: Path) -> Statistics | None:
    """z = (latent - mean) * scaling_factor / std, as diffusers' pipelines whiten."""
    scale, shift, mean, std = (config[k] for k in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"))
    if scale is None and std is None:
        return None
    if mean is not None and shift:
        raise InputError(f"'{path}' has both latents_mean and shift_factor; only one of them can be meant, remove one")
    scale = 1.0 if scale is None else scale
    checked([shift or 0.0], [scale], 1, path)
    mean = [shift or 0.0] * channels if mean is None else mean
    std = checked(mean, [1.0] * channels if std is None else std, channels, path).std
    return checked(mean, [value / scale for value in std], channels, path)
