"""Autoencoders in the layout of diffusers: a folder with ``config.json`` and the weights, AutoencoderKL or VQModel."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from latentdiff import durable
from latentdiff.checkpoint.foreign import diffusers_config
from latentdiff.checkpoint.foreign.architecture import (
    Architecture,
    Foreign,
    of_module,
    published_names,
    published_weights,
)
from latentdiff.checkpoint.foreign.diffusers_config import CONFIG
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.foreign.weights import WeightsFile, check_names, open_weights
from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.autoencoder import Autoencoder

SUBFOLDERS = ("", "vae", "vqvae")
"""Where the autoencoder is in a folder: by itself, or in that of a pipeline."""
WEIGHTS = tuple(f"diffusion_pytorch_model{end}" for end in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin"))

_ATTENTION_NAMES = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the attention in files from before diffusers 0.12, Stable Diffusion 1's among them."""


def folder_of(path: Path) -> Path | None:
    """The folder with the autoencoder's configuration in ``path``, a model's or a pipeline's; None if there is none."""
    return next((path / name for name in SUBFOLDERS if (path / name / CONFIG).is_file()), None)


def weights_of(folder: Path) -> Path:
    """The file with the weights in ``folder``."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"'{folder}' has a {CONFIG}, but no weights; expected one of {', '.join(WEIGHTS)} beside it")


def holds(file: WeightsFile) -> bool:
    """Whether there is an autoencoder in diffusers' layout in ``file``."""
    return "encoder.down_blocks.0.resnets.0.conv1.weight" in file.names


def read(folder: Path, file: WeightsFile | None = None) -> Foreign:
    """The autoencoder in ``folder``, with the weights in ``file`` or else in the folder's own.

    Raises InputError where it is of another class or architecture than ours, or the weights are not exactly its own.
    """
    file = file or open_weights(weights_of(folder))
    architecture, statistics = diffusers_config.read(folder / CONFIG)
    own = diffusers_names(architecture)
    found = {renewed(name): name for name in file.names}
    check_names(own, found, file.path)
    tensors = file.load(file.names)
    weights = {own[name]: _as_convolution(name, tensors[found[name]]) for name in own}
    return Foreign(file.path, architecture, weights, statistics)


def write(autoencoder: Autoencoder, statistics: Statistics, dest: Path, *, sample_size: int | None = None) -> list[str]:
    """A new folder, see ``fill``."""
    with durable.new_directory(dest) as folder:
        return fill(autoencoder, statistics, folder, sample_size=sample_size)


def fill(
    autoencoder: Autoencoder, statistics: Statistics, folder: Path, *, sample_size: int | None = None
) -> list[str]:
    """Fills the empty ``folder``, which diffusers loads strictly; returns what the reader should know.

    ``sample_size``: the image size in training, from which diffusers derives the size of its tiles.
    Raises InputError where diffusers cannot build the autoencoder.
    """
    architecture = of_module(autoencoder)
    config = diffusers_config.describe(architecture, statistics, sample_size)
    published = published_weights(autoencoder)
    names = diffusers_names(architecture)
    tensors = {name: _as_linear(name, published[own]).contiguous() for name, own in names.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})
    if architecture.codebook is not None and ("latents_std" in config or "shift_factor" in config):
        return [
            f"diffusers' VQModel reads neither shift_factor nor latents_mean and latents_std, which are in {CONFIG}"
        ]
    if "latents_std" not in config:
        return []
    return [
        f"the latents' statistics differ between channels: they are in {CONFIG} as latents_mean and latents_std, which "
        "not every pipeline of diffusers reads"
    ]


def diffusers_names(architecture: Architecture) -> dict[str, str]:
    """Name of a tensor in diffusers' files -> name in LDM's."""
    levels = len(architecture.channel_multipliers)
    return {_diffusers_name(name, levels): name for name in published_names(architecture.on_meta())}


def _diffusers_name(name: str, levels: int) -> str:
    """The decoder's levels are numbered from the lowest resolution there, in LDM from the highest."""
    name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
    name = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
    name = name.replace(".mid.attn_1.", ".mid_block.attentions.0.").replace(".nin_shortcut.", ".conv_shortcut.")
    name = re.sub(r"\.block\.(\d+)\.", r".resnets.\1.", name)
    name = re.sub(r"\.attn\.(\d+)\.", r".attentions.\1.", name)
    name = re.sub(r"(\.attentions\.\d+)\.(\w+)\.", lambda m: f"{m[1]}.{_ATTENTION_NAMES[m[2]]}.", name)
    name = name.replace(".downsample.", ".downsamplers.0.").replace(".upsample.", ".upsamplers.0.")
    return re.sub(r"^(en|de)coder\.norm_out\.", r"\1coder.conv_norm_out.", name)


def renewed(name: str) -> str:
    """The present name of a tensor that diffusers wrote, see ``_OLD_NAMES``."""
    return re.sub(r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_OLD_NAMES[m[2]]}.", name)


def _is_projection(name: str) -> bool:
    return ".attentions." in name and ".group_norm." not in name and name.endswith(".weight")


def _as_linear(name: str, value: Tensor) -> Tensor:
    return value.flatten(1) if _is_projection(name) else value


def _as_convolution(name: str, value: Tensor) -> Tensor:
    return value[:, :, None, None] if _is_projection(name) and value.ndim == 2 else value
