"""UNets in the layout of diffusers: a folder with ``config.json`` and the weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from latentdiff import durable
from latentdiff.checkpoint.foreign.diffusers import WEIGHTS, renewed, weights_of
from latentdiff.checkpoint.foreign.diffusers_config import CONFIG
from latentdiff.checkpoint.foreign.unet import diffusers_config
from latentdiff.checkpoint.foreign.unet.architecture import WHAT, ForeignUNet, of_module
from latentdiff.checkpoint.foreign.unet.diffusers_options import CLASS_EMBEDDING
from latentdiff.checkpoint.foreign.unet.names import from_diffusers, tensor_names, to_diffusers
from latentdiff.checkpoint.foreign.weights import WeightsFile, check_names, open_weights
from latentdiff.config.errors import InputError
from latentdiff.models.backbones.unet import UNet

SUBFOLDERS = ("", "unet")
"""Where the UNet is in a folder: by itself, or in that of a pipeline."""


def folder_of(path: Path) -> Path | None:
    """The folder with a UNet's configuration in ``path``, a model's or a pipeline's; None if there is none."""
    folders = (path / name for name in SUBFOLDERS)
    return next((folder for folder in folders if diffusers_config.is_unet(folder / CONFIG)), None)


def holds(file: WeightsFile) -> bool:
    """Whether there is a UNet in diffusers' layout in ``file``."""
    return "down_blocks.0.resnets.0.conv1.weight" in file.names


def read(folder: Path, file: WeightsFile | None = None) -> ForeignUNet:
    """The UNet in ``folder``, with the weights in ``file`` or else in the folder's own.

    Raises InputError where it is of another class or architecture than ours, or the weights are not exactly its own.
    """
    architecture, vector = diffusers_config.read(folder / CONFIG)
    file = file or open_weights(weights_of(folder))
    own = [name for _, names in tensor_names(architecture, vector) for name in names]
    found = {renewed(name): name for name in file.names} if architecture.context_dim is None else _same(file.names)
    check_names(own, found, file.path, WHAT)
    tensors = file.load(file.names)
    try:
        weights = from_diffusers({name: tensors[found[name]] for name in own}, architecture, vector)
    except RuntimeError as error:
        raise InputError(f"the attention in '{file.path}' has not the heads of its {CONFIG}: {error}") from error
    return ForeignUNet(file.path, architecture, weights)


def write(unet: UNet, dest: Path, *, sample_size: int | None = None) -> list[str]:
    """A new folder, see ``fill``."""
    with durable.new_directory(dest) as folder:
        return fill(unet, folder, sample_size=sample_size)


def fill(unet: UNet, folder: Path, *, sample_size: int | None = None) -> list[str]:
    """Fills the empty ``folder``, which diffusers loads strictly; returns what the reader should know.

    ``sample_size``: height and width of the latents in training. Raises InputError where diffusers has no such UNet.
    """
    architecture = of_module(unet)
    config = diffusers_config.describe(architecture, sample_size)
    tensors = to_diffusers(unet.state_dict(), architecture, CLASS_EMBEDDING)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS[0], metadata={"format": "pt"}
    )
    if architecture.vector_dim is not None:
        return ["diffusers takes the pooled vector as class_labels (class_embed_type: projection)"]
    return []


def _same(names: frozenset[str]) -> dict[str, str]:
    return {name: name for name in names}
