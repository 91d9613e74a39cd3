"""Whole models that other programs wrote, found by what stands at a path."""

from __future__ import annotations

from pathlib import Path

from latentdiff.checkpoint.foreign.pipeline import folder, single_file
from latentdiff.checkpoint.foreign.pipeline.whole import Told, Whole
from latentdiff.checkpoint.foreign.weights import open_weights
from latentdiff.config.errors import InputError


def read(path: str | Path, told: Told) -> Whole:
    """The model at ``path``: a single file of Stable Diffusion 1 or 2 (.safetensors or a pickle of tensors), or the
    folder of one of their pipelines in diffusers.

    Raises InputError where there is none, where it is damaged or incomplete, and for pickles with objects in them.
    """
    path = Path(path)
    told.check()
    if path.is_dir():
        if not (path / folder.INDEX).is_file():
            raise InputError(
                f"'{path}' is no pipeline of diffusers: there is no {folder.INDEX}; a UNet or an autoencoder alone is "
                "used without import (init_backbone=PATH, first_stage.checkpoint=PATH)"
            )
        return folder.read(path, told)
    if not path.is_file():
        raise InputError(f"'{path}' does not exist; give a single file of Stable Diffusion or a pipeline's folder")
    return single_file.read(open_weights(path), told)
