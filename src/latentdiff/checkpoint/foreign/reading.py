"""First stages that other programs wrote, found by what stands at a path."""

from __future__ import annotations

from pathlib import Path

from latentdiff import durable
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import diffusers, ldm
from latentdiff.checkpoint.foreign.architecture import Foreign
from latentdiff.checkpoint.foreign.weights import open_weights
from latentdiff.config.errors import InputError


def recognises(path: str | Path) -> bool:
    """Whether at ``path`` stands something that no run of ours wrote: a file, or a folder with a ``config.json``."""
    path = Path(path)
    if path.is_file():
        return True
    return path.is_dir() and not (path / store.MANIFEST).is_file() and diffusers.folder_of(path) is not None


def read(path: str | Path) -> Foreign:
    """The autoencoder at ``path``: a .safetensors file or a pickle of CompVis/LDM or Stable Diffusion, a folder of
    diffusers' AutoencoderKL or VQModel, one of its pipelines, or the weights in such a folder.

    Raises InputError where there is none, where it is damaged or incomplete, and for pickles with objects in them.
    """
    path = Path(path)
    if path.is_dir():
        folder = diffusers.folder_of(path)
        if folder is None:
            raise InputError(f"'{path}' holds no autoencoder of diffusers: there is no {diffusers.CONFIG}")
        return diffusers.read(folder)
    file = open_weights(path)
    if ldm.holds(file):
        return ldm.read(file)
    if not diffusers.holds(file):
        raise InputError(
            f"'{path}' holds no autoencoder: expected tensors named {ldm.PREFIX}encoder.* or encoder.*, it has "
            f"{len(file.names)} others ({', '.join(sorted(file.names)[:4])}, ...)"
        )
    if not (path.parent / diffusers.CONFIG).is_file():
        raise InputError(f"'{path}' is of diffusers, which describes its models in {diffusers.CONFIG}; put it beside")
    return diffusers.read(path.parent, file)


def digest(path: str | Path) -> str:
    """Identity of the weights: sha256 of their file."""
    path = Path(path)
    folder = diffusers.folder_of(path) if path.is_dir() else None
    return durable.sha256(path if folder is None else diffusers.weights_of(folder))
