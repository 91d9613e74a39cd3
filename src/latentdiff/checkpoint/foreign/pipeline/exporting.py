"""A whole model of ours in the formats of other programs: text-to-image, and for diffusers unconditional ones too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from latentdiff import durable
from latentdiff.checkpoint.foreign import diffusers
from latentdiff.checkpoint.foreign.folding import folded
from latentdiff.checkpoint.foreign.pipeline import schedule as schedules
from latentdiff.checkpoint.foreign.pipeline import single_file
from latentdiff.checkpoint.foreign.pipeline.folder import INDEX
from latentdiff.checkpoint.foreign.pipeline.schedule import Schedule
from latentdiff.checkpoint.foreign.statistics import statistics_of
from latentdiff.checkpoint.foreign.text import hf, tokenizer
from latentdiff.checkpoint.foreign.text.architecture import ForeignText, of_conditioner
from latentdiff.checkpoint.foreign.unet import diffusers as unet_diffusers
from latentdiff.checkpoint.models import DiffusionModel
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.conditioning.unconditional import Unconditional
from latentdiff.config import allowlist
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.backbones.unet import UNet

_SCHEDULER = ["diffusers", "DDIMScheduler"]
_WITH_TEXT = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": _SCHEDULER,
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_WITHOUT = {
    "_class_name": "LDMPipeline",
    "scheduler": _SCHEDULER,
    "unet": ["diffusers", "UNet2DModel"],
    "vqvae": ["diffusers", "AutoencoderKL"],
}
"""The name of its first stage is from the VQ model that it was made for."""


@dataclass(frozen=True)
class Parts:
    """``text`` is None in an unconditional model; ``size``: pixels of a side in training."""

    unet: UNet
    codec: LatentCodec
    text: ForeignText | None
    schedule: Schedule
    size: int | None


def why_not(config: DictConfig) -> str | None:
    """What of a checkpoint's configuration no whole model in another program's format can say; None: nothing."""
    target = OmegaConf.select(config, "task.conditioner._target_")
    kind = None if target is None else allowlist.resolve(target)
    if kind not in (OpenClipText, Unconditional):
        name = "none" if kind is None else kind.__name__
        return (
            f"its conditioner is {name}; diffusers' StableDiffusionPipeline and Stable Diffusion's files read CLIP's "
            "text encoder (OpenClipText), diffusers' LDMPipeline nothing, and none anything else"
        )
    if OmegaConf.select(config, "task.conditioner.pooled", default=False):
        return "its UNet reads CLIP's pooled vector beside the states, as no Stable Diffusion 1 or 2 does"
    found = _schedule(config)
    if found is None:
        denoiser = config.task.denoiser
        path, prediction = (node._target_.rpartition(".")[2] for node in (denoiser.path, denoiser.parameterization))
        return (
            f"it predicts {prediction} on {path}; those pipelines know linear or scaled linear betas, with epsilon, v "
            "or sample"
        )
    if found.zero_terminal_snr and found.prediction == "epsilon" and not found.is_leading:
        return "it predicts epsilon, which says nothing of the image at the pure noise where diffusers' grid starts"
    return None


def parts_of(model: DiffusionModel) -> Parts:
    """Of a model to which ``why_not`` has no objection. Raises InputError where its text encoder is none of plain
    CLIP's."""
    has_text = isinstance(model.conditioner, OpenClipText)
    return Parts(
        unet=model.denoiser.backbone,
        codec=model.codec,
        text=of_conditioner(model.conditioner, model.path) if has_text else None,
        schedule=_schedule(model.config),
        size=OmegaConf.select(model.config, "data.size"),
    )


def why_no_file(parts: Parts) -> str | None:
    """What Stable Diffusion's single files cannot hold; None: nothing."""
    return "it reads no text, and Stable Diffusion's files have a text encoder" if parts.text is None else None


def why_no_pipeline(parts: Parts) -> str | None:
    """What no pipeline of diffusers can compute; None: nothing."""
    bottleneck = type(parts.codec.autoencoder.bottleneck)
    if bottleneck is not KL:
        return f"its first stage has the bottleneck {bottleneck.__name__}; the pipelines that are written have KL's"
    if parts.text is None and parts.size is None:
        return "its checkpoint does not say the size of its images, which diffusers' LDMPipeline takes from the UNet"
    return None


def write_single_file(parts: Parts, dest: Path) -> list[str]:
    """Writes the new file ``dest``; returns what its reader should know. Whitening by more than one factor is folded,
    such that the factor is Stable Diffusion's, which other programs take for granted."""
    codec = parts.codec
    if not statistics_of(codec).is_one_scale and isinstance(codec.autoencoder.bottleneck, KL):
        codec = folded(codec, scale=single_file.SD_SCALE)
    found = single_file.contents(parts.unet, codec, parts.text, parts.schedule, size=parts.size)
    return found.write(dest)


def fill_folder(parts: Parts, root: Path) -> list[str]:
    """Fills the empty folder ``root``, a StableDiffusionPipeline, or without text an LDMPipeline; returns what its
    reader should know."""
    side = None if parts.size is None else parts.size // parts.codec.factor
    codec = parts.codec if statistics_of(parts.codec).is_one_scale else folded(parts.codec)
    index, place = (_WITHOUT, "vqvae") if parts.text is None else (_WITH_TEXT, "vae")
    notes = diffusers.write(codec.autoencoder, statistics_of(codec), root / place, sample_size=parts.size)
    notes += unet_diffusers.write(parts.unet, root / "unet", sample_size=side)
    if parts.text is not None:
        _write_text(parts.text, root)
    with durable.new_directory(root / "scheduler") as folder:
        _write_json(folder / schedules.SCHEDULER, schedules.describe(parts.schedule))
    _write_json(root / INDEX, index)
    return notes


def _write_text(text: ForeignText, root: Path) -> None:
    with durable.new_directory(root / "text_encoder") as folder:
        hf.write(text, folder)
    with durable.new_directory(root / "tokenizer") as folder:
        tokenizer.write(folder, pad_with_end=text.pad_with_end, context_length=text.architecture.context_length)


def _schedule(config: DictConfig) -> Schedule | None:
    denoiser = config.task.denoiser
    grid = OmegaConf.select(config, "sampler.grid", default={})
    return schedules.of_nodes(denoiser.path, denoiser.parameterization, grid)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
