"""What of a checkpoint other programs' formats can hold, and what writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import diffusers, ldm
from latentdiff.checkpoint.foreign import reading as foreign
from latentdiff.checkpoint.foreign.backbones import own_backbone
from latentdiff.checkpoint.foreign.folding import folded
from latentdiff.checkpoint.foreign.pipeline import exporting
from latentdiff.checkpoint.foreign.statistics import statistics_of
from latentdiff.checkpoint.foreign.unet import architecture as unets
from latentdiff.checkpoint.foreign.unet import diffusers as unet_diffusers
from latentdiff.checkpoint.foreign.unet import ldm as unet_ldm
from latentdiff.checkpoint.models import load_codec, load_diffusion
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import load_config
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.backbones.unet import UNet

Format = Literal["diffusers", "ldm", "latentdiff"]


@dataclass(frozen=True)
class Options:
    """``scale`` and ``shift`` are those of another program's latents, where its files do not say them; ``first_stage``
    is the place of a second stage's, if it is not where training found it."""

    single_file: bool = False
    unet_only: bool = False
    scale: float | None = None
    shift: float | None = None
    first_stage: str | None = None
    with_text_encoder: bool = False

    def check(self, form: Format, *, is_foreign: bool, kind: str) -> None:
        """Raises InputError for what is not for this format, or not for a checkpoint of this kind."""
        if self.single_file and form != "ldm":
            raise InputError("--single-file is for --format ldm: the names within Stable Diffusion's single files")
        if self.with_text_encoder and form != "latentdiff":
            raise InputError("--with-text-encoder is for --format latentdiff; a pipeline always holds its own")
        if self.unet_only and (form == "latentdiff" or kind != "diffusion"):
            raise InputError("--unet-only is for a second stage in --format diffusers or ldm")
        if self.first_stage is not None and kind == "autoencoder":
            raise InputError("--first-stage is for a second stage; what is exported here is a first stage itself")
        if not is_foreign and (self.scale is not None or self.shift is not None):
            raise InputError("--scale and --shift are for other programs' files; this checkpoint carries its own")
        if is_foreign and form == "latentdiff":
            raise InputError(
                "--format latentdiff is for checkpoints of ours; another program's autoencoder is used as it is: "
                "first_stage.checkpoint=PATH"
            )


@dataclass(frozen=True)
class Export:
    """``write`` makes ``what``, a new file (ldm) or the contents of an empty folder, and says what its reader should
    know."""

    what: str
    write: Callable[[Path], list[str]]


def first_stage(checkpoint: str | Path, form: Format, options: Options) -> Export:
    """Raises InputError where ``checkpoint`` is none, or the format cannot hold it."""
    statistics, size = None, None
    if foreign.recognises(checkpoint):
        statistics = foreign.read(checkpoint).chosen_statistics(scale=options.scale, shift=options.shift)
    else:
        size = image_size(checkpoint)
    codec = load_codec(checkpoint, statistics=statistics)
    statistics = statistics or statistics_of(codec)
    if form == "ldm":
        prefix = ldm.PREFIX if options.single_file else ""
        return Export("first stage", lambda dest: ldm.write(codec.autoencoder, statistics, dest, prefix=prefix))
    if statistics.factors() is None and isinstance(codec.autoencoder.bottleneck, KL):
        codec = folded(codec)
        statistics = statistics_of(codec)
    return Export("first stage", lambda dest: diffusers.fill(codec.autoencoder, statistics, dest, sample_size=size))


def second_stage(checkpoint: str | Path, form: Format, options: Options) -> Export:
    """The whole model, or its UNet alone where that is asked for: without ``single_file`` a file of LDM is one.

    Raises InputError where the format cannot hold it, with the reason and what can be written instead.
    """
    unet = _unet(checkpoint)
    if options.unet_only or (form == "ldm" and not options.single_file):
        return Export("UNet", lambda dest: _write_unet(unet, checkpoint, form, options, dest))
    if (reason := exporting.why_not(load_config(place_of(checkpoint) / store.CONFIG))) is not None:
        raise _refusal(checkpoint, form, reason)
    parts = exporting.parts_of(load_diffusion(checkpoint, first_stage=options.first_stage))
    reason = exporting.why_no_file(parts) if form == "ldm" else exporting.why_no_pipeline(parts)
    if reason is not None:
        raise _refusal(checkpoint, form, reason)
    if form == "ldm":
        return Export("whole model", lambda dest: exporting.write_single_file(parts, dest))
    return Export("pipeline", lambda dest: exporting.fill_folder(parts, dest))


def _refusal(checkpoint: str | Path, form: Format, reason: str) -> InputError:
    what = "a pipeline of diffusers" if form == "diffusers" else "a single file of Stable Diffusion"
    return InputError(
        f"'{checkpoint}' cannot be written as {what}: {reason}. --unet-only writes its UNet alone, its first stage is "
        "exported by itself, and --format latentdiff holds the whole model"
    )


def _unet(checkpoint: str | Path) -> UNet:
    backbone = own_backbone(checkpoint)
    try:
        if not isinstance(backbone, UNet):
            raise InputError(
                f"the backbone of '{checkpoint}' is a {type(backbone).__name__}; LDM's and diffusers' formats are "
                "written of a UNet alone"
            )
        unets.of_module(backbone)
    except InputError as error:
        raise InputError(f"{error}. --format latentdiff holds the whole model") from error
    return backbone


def _write_unet(unet: UNet, checkpoint: str | Path, form: Format, options: Options, dest: Path) -> list[str]:
    if form == "ldm":
        notes = unet_ldm.write(unet, dest, prefix=unet_ldm.PREFIX if options.single_file else "")
    else:
        size, latent = image_size(checkpoint), store.read_manifest(place_of(checkpoint)).latent
        notes = unet_diffusers.fill(unet, dest, sample_size=size // latent["factor"] if size and latent else None)
    return [*notes, _use(checkpoint)]


def _use(checkpoint: str | Path) -> str:
    """What another program must do with a UNet that the files do not say."""
    diffusion = load_config(place_of(checkpoint) / store.CONFIG).diffusion
    path, prediction = (diffusion[part]._target_.rpartition(".")[2] for part in ("path", "parameterization"))
    return (
        f"it predicts {prediction} on {path} at that path's network time (docs/math.md), for latents whitened by its "
        "first stage, which is exported by itself: choose scheduler and scaling of the other program accordingly"
    )


def image_size(checkpoint: str | Path) -> int | None:
    """That of training."""
    return OmegaConf.select(load_config(place_of(checkpoint) / store.CONFIG), "data.size")


def place_of(checkpoint: str | Path) -> Path:
    return store.resolve(checkpoint, prefer=("last", "best"))
