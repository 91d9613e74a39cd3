"""Whole models as folders of diffusers' pipelines: ``model_index.json`` and one folder for each part."""

from __future__ import annotations

from pathlib import Path

from latentdiff.checkpoint.foreign import diffusers
from latentdiff.checkpoint.foreign.diffusers_config import CONFIG
from latentdiff.checkpoint.foreign.json_file import load_json
from latentdiff.checkpoint.foreign.pipeline import schedule as schedules
from latentdiff.checkpoint.foreign.pipeline.whole import Told, Whole
from latentdiff.checkpoint.foreign.text import hf, tokenizer
from latentdiff.checkpoint.foreign.unet import diffusers as unet_diffusers
from latentdiff.config.errors import InputError

INDEX = "model_index.json"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def read(path: Path, told: Told) -> Whole:
    """The pipeline in the folder ``path``.

    Raises InputError where a part is missing or of another kind than Stable Diffusion 1's and 2's, and for options
    whose answer the folder itself has.
    """
    _check(path, told)
    first_stage = diffusers.read(path / "vae")
    text = hf.read(path / "text_encoder", pad_with_end=tokenizer.pads_with_end(path / "tokenizer"))
    schedule, notes = schedules.read(path / "scheduler" / schedules.SCHEDULER)
    return Whole(
        path=path,
        unet=unet_diffusers.read(path / "unet"),
        first_stage=first_stage,
        statistics=first_stage.chosen_statistics(scale=told.scale, shift=told.shift),
        text=text,
        schedule=schedule,
        size=told.size or _size(path, first_stage.architecture.latent["factor"]),
        notes=notes,
    )


def _check(path: Path, told: Told) -> None:
    index = load_json(path / INDEX)
    if extra := sorted(name for name in ("text_encoder_2", "transformer", "prior") if index.get(name, [None])[0]):
        raise InputError(
            f"'{path}' is a {index.get('_class_name')} with {', '.join(extra)}; pipelines of Stable Diffusion 1 and 2 "
            "are imported, which have one text encoder and a UNet"
        )
    if missing := [name for name in PARTS if not (path / name).is_dir()]:
        raise InputError(
            f"'{path}' has an {INDEX}, but no folder {', '.join(missing)}; copy the whole pipeline "
            f"({', '.join(PARTS)}; safety checker and feature extractor are not needed)"
        )
    for name in ("prediction", "unet_heads", "text_heads", "first_stage", "text_encoder"):
        if getattr(told, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for single files; the folder '{path}' says it itself")


def _size(path: Path, factor: int) -> int:
    """Pixels of a side in training, from the UNet's latents."""
    size = load_json(path / "unet" / CONFIG).get("sample_size")
    if type(size) is not int or size < 1:
        raise InputError(f"'{path / 'unet' / CONFIG}' does not say the size of its latents; give --size PX")
    return size * factor
