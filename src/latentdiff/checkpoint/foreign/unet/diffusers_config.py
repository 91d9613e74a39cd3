"""``config.json`` of diffusers' UNet2DConditionModel (with context) and UNet2DModel (without)."""

from __future__ import annotations

import json
from pathlib import Path

from latentdiff.checkpoint.foreign.architecture import multipliers
from latentdiff.checkpoint.foreign.unet.architecture import UNetArchitecture
from latentdiff.checkpoint.foreign.unet.diffusers_options import (
    ADD_EMBEDDING,
    CLASS_EMBEDDING,
    FIXED,
    KINDS,
    OWN_DEFAULTS,
    PLAIN,
    RESAMPLING,
    RESIDUAL,
    WITH_CONTEXT,
    WITHOUT,
    load,
)
from latentdiff.config.errors import InputError


def is_unet(path: Path) -> bool:
    """Whether the file is the configuration of a UNet of diffusers; not where it cannot be read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("_class_name") in OWN_DEFAULTS


def read(path: Path) -> tuple[UNetArchitecture, str]:
    """The architecture, and the name of what embeds the pooled vector.

    Raises InputError where the file is no such configuration, or one of a UNet that we cannot build.
    """
    config = load(path)
    widths, down = config["block_out_channels"], config["down_block_types"]
    with_context = config["_class_name"] == WITH_CONTEXT
    has_attention = [kind == KINDS[config["_class_name"]][0] for kind in down]
    readers = [*has_attention[:-1], True]  # the middle has attention of the lowest level's kind
    if with_context:
        depths = _per_level(config["transformer_layers_per_block"], len(widths))
        numbers = _per_level(config["attention_head_dim"], len(widths))  # heads, in spite of its name
    else:
        depths = [0] * len(widths)
        numbers = [width // (config["attention_head_dim"] or width) for width in widths]
    vector_dim, vector = _vector(config, path)
    architecture = UNetArchitecture(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        channels=widths[0],
        channel_multipliers=multipliers(widths, widths[0], path),
        num_res_blocks=config["layers_per_block"],
        attention_factors=tuple(2**i for i, attention in enumerate(has_attention) if attention),
        context_dim=config["cross_attention_dim"] if with_context else None,
        heads=tuple(n if reads else 0 for n, reads in zip(numbers, readers)),
        transformer_depth=tuple(d if reads else 0 for d, reads in zip(depths, readers)),
        use_linear=with_context and config["use_linear_projection"],
        vector_dim=vector_dim,
        num_classes=config["num_class_embeds"] if config["class_embed_type"] is None else None,
        use_scale_shift_norm=config["resnet_time_scale_shift"] == "scale_shift",
        resblock_updown=_resampled_by_block(config, path),
        norm_groups=config["norm_num_groups"],
    )
    return architecture, vector


def describe(architecture: UNetArchitecture, sample_size: int | None = None) -> dict:
    """The configuration with which diffusers builds ``architecture``. Raises InputError where it has no such UNet."""
    _check_expressible(architecture)
    with_context = architecture.context_dim is not None
    kind = WITH_CONTEXT if with_context else WITHOUT
    plain = RESIDUAL if architecture.resblock_updown else PLAIN
    factors = [2**i for i in range(len(architecture.widths))]
    down, up = (
        [(without, attention)[f in architecture.attention_factors] for f in factors]
        for without, attention in zip(plain, KINDS[kind])
    )
    config: dict[str, object] = {name: values[0] for name, values in FIXED.items()}
    config |= {
        "_class_name": kind,
        "block_out_channels": list(architecture.widths),
        "down_block_types": down,
        "in_channels": architecture.in_channels,
        "layers_per_block": architecture.num_res_blocks,
        "norm_num_groups": architecture.norm_groups,
        "num_class_embeds": architecture.num_classes,
        "out_channels": architecture.out_channels,
        "resnet_time_scale_shift": "scale_shift" if architecture.use_scale_shift_norm else "default",
        "sample_size": sample_size,
        "up_block_types": up[::-1],
    }
    if with_context:
        return config | _with_context(architecture)
    resampling = "resnet" if architecture.resblock_updown else "conv"
    width = {w for w in architecture.head_widths if w}
    return config | {
        "attention_head_dim": None if set(architecture.heads) <= {0, 1} else width.pop(),
        # without it diffusers leaves the middle's norm out where the embedding scales and shifts
        "attn_norm_num_groups": architecture.norm_groups,
        "downsample_type": resampling,
        "upsample_type": resampling,
    }


def _with_context(architecture: UNetArchitecture) -> dict:
    heads, depths = (_filled(values) for values in (architecture.heads, architecture.transformer_depth))
    config = {
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "cross_attention_dim": architecture.context_dim,
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "use_linear_projection": architecture.use_linear,
    }
    if architecture.vector_dim is not None:
        config |= {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": architecture.vector_dim,
        }
    return config


def _check_expressible(architecture: UNetArchitecture) -> None:
    if (first := architecture.channel_multipliers[0]) != 1:
        raise InputError(
            f"the first level of this UNet is {first} times as wide as its first convolution; in diffusers both have "
            "one width, so it can only be exported with --format ldm"
        )
    if architecture.context_dim is not None:
        if architecture.resblock_updown:
            raise InputError(
                "diffusers' blocks with cross-attention halve and double with convolutions, this UNet with residual "
                "blocks (resblock_updown); it can only be exported with --format ldm"
            )
        return
    if architecture.vector_dim is not None:
        raise InputError(
            f"diffusers' {WITHOUT}, the one without context, reads no vector (vector_dim); this UNet can only be "
            "exported with --format ldm"
        )
    if len({w for w in architecture.head_widths if w}) > 1 and not set(architecture.heads) <= {0, 1}:
        raise InputError(
            f"diffusers' {WITHOUT} has one width of heads for all levels, this UNet has {architecture.head_widths}; "
            "it can only be exported with --format ldm"
        )


def _vector(config: dict, path: Path) -> tuple[int | None, str]:
    """Width of the pooled vector, and the name of what embeds it."""
    found = [CLASS_EMBEDDING] if config["class_embed_type"] == "projection" else []
    found += [ADD_EMBEDDING] if config.get("addition_embed_type") == "text_time" else []
    has_classes = config["class_embed_type"] is None and config["num_class_embeds"] is not None
    if len(found) + has_classes > 1:
        raise InputError(f"'{path}' describes a UNet with several embeddings beside the time's; at most one is known")
    return (config["projection_class_embeddings_input_dim"], found[0]) if found else (None, CLASS_EMBEDDING)


def _resampled_by_block(config: dict, path: Path) -> bool:
    """Whether the UNet halves and doubles with residual blocks; all levels must do it alike."""
    if config["_class_name"] == WITH_CONTEXT:
        return False
    found = set()
    for i, key in enumerate(("down", "up")):
        by_type = {
            KINDS[WITHOUT][i]: RESAMPLING[config[f"{key}sample_type"]],
            PLAIN[i]: False,
            RESIDUAL[i]: True,
        }
        found |= {by_type[name] for name in config[f"{key}_block_types"][:-1]}
    if len(found) > 1:
        raise InputError(
            f"'{path}' describes a UNet that halves and doubles partly with convolutions, partly with residual blocks; "
            "here all levels do it alike"
        )
    return found == {True}


def _per_level(value: object, levels: int) -> list[int]:
    return list(value) if isinstance(value, list) else [value] * levels


def _filled(values: tuple[int, ...]) -> list[int]:
    """Where there is no attention, what the next lower level has: diffusers wants a number there as well."""
    filled = list(values)
    for i in reversed(range(len(filled) - 1)):
        filled[i] = filled[i] or filled[i + 1]
    return filled
