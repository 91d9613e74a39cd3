"""UNets that other programs wrote, found by what stands at a path."""

from __future__ import annotations

from pathlib import Path

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.diffusers_config import CONFIG
from latentdiff.checkpoint.foreign.unet import diffusers, diffusers_config, ldm
from latentdiff.checkpoint.foreign.unet.architecture import ForeignUNet
from latentdiff.checkpoint.foreign.weights import open_weights
from latentdiff.config.errors import InputError


def recognises(path: str | Path) -> bool:
    """Whether at ``path`` stands something that no run of ours wrote: a file, or a folder with a ``config.json``."""
    path = Path(path)
    if path.is_file():
        return True
    folders = (path / name for name in diffusers.SUBFOLDERS)
    return not (path / store.MANIFEST).is_file() and any((folder / CONFIG).is_file() for folder in folders)


def read(path: str | Path) -> ForeignUNet:
    """The UNet at ``path``: a .safetensors file or a pickle of CompVis/LDM or Stable Diffusion, a folder of diffusers'
    UNet2DConditionModel or UNet2DModel, one of its pipelines, or the weights in such a folder.

    Raises InputError where there is none, where it is damaged or incomplete, and for pickles with objects in them.
    """
    path = Path(path)
    if path.is_dir():
        folders = [path / name for name in diffusers.SUBFOLDERS if (path / name / CONFIG).is_file()]
        if not folders:
            raise InputError(f"'{path}' holds no UNet of diffusers: there is no {CONFIG}")
        return diffusers.read(diffusers.folder_of(path) or folders[-1])
    file = open_weights(path)
    if ldm.holds(file):
        return ldm.read(file)
    if not diffusers.holds(file):
        raise InputError(
            f"'{path}' holds no UNet: expected tensors named {ldm.PREFIX}input_blocks.* or input_blocks.*, it has "
            f"{len(file.names)} others ({', '.join(sorted(file.names)[:4])}, ...)"
        )
    if not diffusers_config.is_unet(path.parent / CONFIG):
        raise InputError(f"'{path}' is of diffusers, which describes its models in {CONFIG}; put it beside")
    return diffusers.read(path.parent, file)
