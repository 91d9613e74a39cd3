"""A first stage, a whole text-to-image model or its backbone alone, in the format of another program."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from safetensors import SafetensorError

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import diffusers, ldm
from latentdiff.checkpoint.foreign import reading as foreign
from latentdiff.checkpoint.foreign.backbones import own_backbone
from latentdiff.checkpoint.foreign.pipeline import exporting
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.foreign.unet import diffusers as unet_diffusers
from latentdiff.checkpoint.foreign.unet import ldm as unet_ldm
from latentdiff.checkpoint.foreign.weights import check_file_name
from latentdiff.checkpoint.models import load_codec, load_diffusion
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import load_config
from latentdiff.models.backbones.unet import UNet

Format = Literal["diffusers", "ldm"]


@dataclass(frozen=True)
class Exported:
    what: str
    notes: list[str]
    """What the reader of the files should know."""


def export(
    checkpoint: str | Path,
    dest: str | Path,
    *,
    form: Format,
    single_file: bool = False,
    scale: float | None = None,
    shift: float | None = None,
    first_stage: str | None = None,
) -> Exported:
    """Writes the averaged weights of a first or second stage to ``dest``: a new folder of diffusers or a new
    .safetensors file in LDM's layout, there with ``single_file`` under the names within Stable Diffusion's.

    Of a second stage that reads CLIP's text encoder through ``OpenClipText`` on a path that the other programs have,
    the whole model is written: with format diffusers as a pipeline, with ``single_file`` as Stable Diffusion's. Of
    others, and without ``single_file``, the UNet alone. ``first_stage``: its place, if it is not where training found
    it.

    ``checkpoint`` may also be another program's autoencoder, so that one format becomes the other; ``scale`` and
    ``shift`` are those of its latents, where its files do not say them.

    Raises InputError where ``checkpoint`` is neither, the format cannot hold it, or ``dest`` stands already.
    """
    dest = Path(dest)
    if os.path.lexists(dest):
        raise InputError(f"'{dest}' stands already and is not overwritten; name another place, or remove it")
    if single_file and form != "ldm":
        raise InputError("--single-file is for format=ldm: the names within Stable Diffusion's single files")
    is_foreign = foreign.recognises(checkpoint)
    if not is_foreign and (scale is not None or shift is not None):
        raise InputError("--scale and --shift are for other programs' files; this checkpoint carries its own")
    try:
        if not is_foreign and _kind(checkpoint) == "diffusion":
            return _second_stage(checkpoint, dest, form, single_file, first_stage)
        if first_stage is not None:
            raise InputError("--first-stage is for a second stage; what is exported here is a first stage itself")
        return _first_stage(checkpoint, dest, form, single_file, scale, shift)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"'{dest}' cannot be written ({why}); name another place") from error


def _first_stage(
    checkpoint: str | Path, dest: Path, form: Format, single_file: bool, scale: float | None, shift: float | None
) -> Exported:
    statistics, size = None, None
    if foreign.recognises(checkpoint):
        statistics = foreign.read(checkpoint).chosen_statistics(scale=scale, shift=shift)
    else:
        size = _image_size(checkpoint)
    codec = load_codec(checkpoint, statistics=statistics)
    statistics = statistics or Statistics(tuple(codec.mean.flatten().tolist()), tuple(codec.std.flatten().tolist()))
    if form == "ldm":
        notes = ldm.write(codec.autoencoder, statistics, dest, prefix=ldm.PREFIX if single_file else "")
    else:
        notes = diffusers.write(codec.autoencoder, statistics, dest, sample_size=size)
    return Exported("first stage", notes)


def _second_stage(
    checkpoint: str | Path, dest: Path, form: Format, single_file: bool, first_stage: str | None
) -> Exported:
    backbone = own_backbone(checkpoint)
    if not isinstance(backbone, UNet):
        raise InputError(
            f"the backbone of '{checkpoint}' is a {type(backbone).__name__}; LDM's and diffusers' formats are written "
            "of a UNet alone"
        )
    if form == "ldm":
        check_file_name(dest)
    if form == "ldm" and not single_file:
        return _backbone(checkpoint, backbone, dest, form, prefix="")
    if (reason := exporting.why_not(load_config(_place(checkpoint) / store.CONFIG))) is None:
        parts = exporting.parts_of(load_diffusion(checkpoint, first_stage=first_stage))
        if form == "ldm":
            return Exported("whole model", exporting.write_single_file(parts, dest))
        if (reason := exporting.why_no_pipeline(parts)) is None:
            return Exported("pipeline", exporting.write_folder(parts, dest))
    exported = _backbone(checkpoint, backbone, dest, form, prefix=unet_ldm.PREFIX)
    return Exported(exported.what, [f"of this model only the UNet is written: {reason}", *exported.notes])


def _backbone(checkpoint: str | Path, backbone: UNet, dest: Path, form: Format, *, prefix: str) -> Exported:
    if form == "ldm":
        notes = unet_ldm.write(backbone, dest, prefix=prefix)
    else:
        size, latent = _image_size(checkpoint), _manifest(checkpoint).latent
        notes = unet_diffusers.write(backbone, dest, sample_size=size // latent["factor"] if size and latent else None)
    return Exported("backbone", [*notes, _use(checkpoint)])


def _use(checkpoint: str | Path) -> str:
    """What another program must do with a backbone that the files do not say."""
    diffusion = load_config(_place(checkpoint) / store.CONFIG).diffusion
    path, prediction = (diffusion[part]._target_.rpartition(".")[2] for part in ("path", "parameterization"))
    return (
        f"it predicts {prediction} on {path} at that path's network time (docs/math.md), for latents whitened by its "
        "first stage, which is exported by itself: choose scheduler and scaling of the other program accordingly"
    )


def _kind(checkpoint: str | Path) -> str:
    """Of a checkpoint of ours; a kind that cannot be exported is refused as no first stage."""
    kind = _manifest(checkpoint).kind
    return kind if kind == "diffusion" else store.read_manifest(_place(checkpoint), expect_kind="autoencoder").kind


def _image_size(checkpoint: str | Path) -> int | None:
    """That of training."""
    return OmegaConf.select(load_config(_place(checkpoint) / store.CONFIG), "data.size")


def _manifest(checkpoint: str | Path) -> store.Manifest:
    return store.read_manifest(_place(checkpoint))


def _place(checkpoint: str | Path) -> Path:
    return store.resolve(checkpoint, prefer=("last", "best"))
