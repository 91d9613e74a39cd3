"""UNets in the layout of LDM (arXiv:2112.10752): CompVis' .ckpt files, single files of Stable Diffusion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from latentdiff.checkpoint.foreign.architecture import LDM_GROUPS
from latentdiff.checkpoint.foreign.unet.architecture import WHAT, ForeignUNet, UNetArchitecture, infer, of_module
from latentdiff.checkpoint.foreign.weights import Contents, WeightsFile, check_file_name, check_names
from latentdiff.config.errors import InputError
from latentdiff.models.backbones.unet import UNet

PREFIX = "model.diffusion_model."
"""Of the UNet's tensors in a file that holds more."""

AVERAGED = "model_ema.diffusion_model"
"""Before the names of the averaged weights, which are written without their dots."""

HEADS = "unet_heads"
"""Key of the metadata of files that we write: the number of heads of each level as JSON, 0 where there is none."""

_FIRST = "input_blocks.0.0.weight"


def holds(file: WeightsFile) -> bool:
    """Whether there is a UNet in LDM's layout in ``file``."""
    return any(prefix + _FIRST in file.names for prefix in (PREFIX, ""))


def read(file: WeightsFile) -> ForeignUNet:
    """The UNet in ``file``: what begins with ``model.diffusion_model.``, else all there is.

    Where the file holds averaged weights as well (LDM's model_ema), they are taken. Raises InputError where the tensors
    are not exactly those of a UNet.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in file.names) else ""
    names = [name for name in file.names if name.startswith(prefix)]
    weights = {name.removeprefix(prefix): value for name, value in file.load(names).items()}
    architecture = infer(weights, file.path)
    own = architecture.on_meta().state_dict()
    check_names(own, weights, file.path, WHAT)
    if any(name.startswith(AVERAGED) for name in file.names):
        weights = _averaged(file, list(own))
    return ForeignUNet(file.path, replace(architecture, heads=_heads(file, architecture)), weights)


def write(unet: UNet, dest: Path, *, prefix: str = "") -> list[str]:
    """Writes the UNet to the file ``dest``; returns what the reader of the file should know.

    Raises InputError where LDM has no such UNet.
    """
    check_file_name(dest)
    return contents(unet, prefix=prefix).write(dest)


def contents(unet: UNet, *, prefix: str = "") -> Contents:
    """What ``write`` writes."""
    architecture = of_module(unet)
    if architecture.norm_groups != LDM_GROUPS:
        raise InputError(
            f"the norms of this UNet have {architecture.norm_groups} groups, LDM's have {LDM_GROUPS} and no option for "
            "it; export with --format diffusers, which has one"
        )
    tensors = {prefix + name: value for name, value in unet.state_dict().items()}
    metadata = {"format": "pt", HEADS: json.dumps(architecture.heads)}
    note = f"LDM takes the architecture from its own configuration: {_configuration(architecture)}"
    return Contents(tensors, metadata, [note])


def _averaged(file: WeightsFile, names: list[str]) -> dict[str, Tensor]:
    stored = {AVERAGED + name.replace(".", ""): name for name in names}
    check_names(stored, [name for name in file.names if name.startswith(AVERAGED)], file.path, "the averaged UNet")
    return {stored[name]: value for name, value in file.load(list(stored)).items()}


def _heads(file: WeightsFile, architecture: UNetArchitecture) -> tuple[int, ...] | None:
    if HEADS not in file.metadata:
        return None
    levels = len(architecture.channel_multipliers)
    try:
        heads = json.loads(file.metadata[HEADS])
    except ValueError:
        heads = None
    if isinstance(heads, list) and len(heads) == levels and all(type(n) is int and n >= 0 for n in heads):
        return tuple(heads)
    raise InputError(f"'{file.path}': {HEADS} in its metadata should be {levels} numbers, is {file.metadata[HEADS]!r}")


def _configuration(architecture: UNetArchitecture) -> str:
    """In LDM's terms."""
    options: dict[str, object] = {
        "in_channels": architecture.in_channels,
        "out_channels": architecture.out_channels,
        "model_channels": architecture.channels,
        "channel_mult": list(architecture.channel_multipliers),
        "num_res_blocks": architecture.num_res_blocks,
        "attention_resolutions": list(architecture.attention_factors),
    }
    numbers, widths = (set(values) - {0} for values in (architecture.heads, architecture.head_widths))
    options |= {"num_heads": numbers.pop()} if len(numbers) == 1 else {"num_head_channels": widths.pop()}
    if architecture.context_dim is not None:
        depths = sorted(set(architecture.transformer_depth) - {0})
        options |= {
            "use_spatial_transformer": True,
            "context_dim": architecture.context_dim,
            "transformer_depth": depths[0] if len(depths) == 1 else list(architecture.transformer_depth),
        }
    options |= {"use_linear_in_transformer": True} if architecture.use_linear else {}
    options |= {name: True for name in ("use_scale_shift_norm", "resblock_updown") if getattr(architecture, name)}
    if architecture.num_classes is not None:
        options["num_classes"] = architecture.num_classes
    if architecture.vector_dim is not None:
        options |= {"num_classes": "sequential", "adm_in_channels": architecture.vector_dim}
    return ", ".join(f"{name}: {value}" for name, value in options.items())
