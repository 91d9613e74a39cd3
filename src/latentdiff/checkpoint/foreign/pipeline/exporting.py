"""A whole text-to-image model of ours in the formats of other programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from latentdiff import durable
from latentdiff.checkpoint.foreign import diffusers
from latentdiff.checkpoint.foreign.pipeline import schedule as schedules
from latentdiff.checkpoint.foreign.pipeline import single_file
from latentdiff.checkpoint.foreign.pipeline.folder import INDEX
from latentdiff.checkpoint.foreign.pipeline.schedule import Schedule
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.foreign.text import hf, tokenizer
from latentdiff.checkpoint.foreign.text.architecture import ForeignText, of_conditioner
from latentdiff.checkpoint.foreign.unet import diffusers as unet_diffusers
from latentdiff.checkpoint.models import DiffusionModel
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.config import allowlist
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.backbones.unet import UNet

_PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@dataclass(frozen=True)
class Parts:
    """``size``: pixels of a side in training."""

    unet: UNet
    codec: LatentCodec
    text: ForeignText
    schedule: Schedule
    size: int | None


def why_not(config: DictConfig) -> str | None:
    """What of a checkpoint's configuration no whole model of Stable Diffusion's kind can say; None: nothing."""
    target = OmegaConf.select(config, "task.conditioner._target_")
    if target is None or allowlist.resolve(target) is not OpenClipText:
        name = "none" if target is None else target.rpartition(".")[2]
        return f"its conditioner is {name}; whole models are written of one with OpenClipText alone"
    if OmegaConf.select(config, "task.conditioner.pooled", default=False):
        return "its UNet reads CLIP's pooled vector beside the states, as no Stable Diffusion 1 or 2 does"
    if _schedule(config) is None:
        return "its path or prediction is none of diffusers' (linear or scaled linear betas; epsilon, v or sample)"
    return None


def parts_of(model: DiffusionModel) -> Parts:
    """Of a model to which ``why_not`` has no objection. Raises InputError where its text encoder is none of plain
    CLIP's."""
    return Parts(
        unet=model.denoiser.backbone,
        codec=model.codec,
        text=of_conditioner(model.conditioner, model.path),
        schedule=_schedule(model.config),
        size=OmegaConf.select(model.config, "data.size"),
    )


def why_no_pipeline(parts: Parts) -> str | None:
    """What diffusers' StableDiffusionPipeline cannot compute; None: nothing."""
    factors = _statistics(parts.codec).factors()
    if factors is None or factors[1] != 0.0:
        return "its latents have a shift, or a scale for each channel, and diffusers' pipeline reads one scale alone"
    if not isinstance(parts.codec.autoencoder.bottleneck, KL):
        return "its first stage is quantised, and diffusers' pipeline takes an AutoencoderKL"
    return None


def write_single_file(parts: Parts, dest: Path) -> list[str]:
    """Writes the new file ``dest``; returns what its reader should know."""
    found = single_file.contents(parts.unet, parts.codec, parts.text, parts.schedule, size=parts.size)
    return found.write(dest)


def write_folder(parts: Parts, dest: Path) -> list[str]:
    """Writes the new folder ``dest``, a StableDiffusionPipeline; returns what its reader should know."""
    side = None if parts.size is None else parts.size // parts.codec.factor
    context = parts.text.architecture.context_length
    with durable.new_directory(dest) as staged:
        notes = diffusers.write(
            parts.codec.autoencoder, _statistics(parts.codec), staged / "vae", sample_size=parts.size
        )
        notes += unet_diffusers.write(parts.unet, staged / "unet", sample_size=side)
        with durable.new_directory(staged / "text_encoder") as folder:
            hf.write(parts.text, folder)
        with durable.new_directory(staged / "tokenizer") as folder:
            tokenizer.write(folder, pad_with_end=parts.text.pad_with_end, context_length=context)
        with durable.new_directory(staged / "scheduler") as folder:
            _write_json(folder / schedules.SCHEDULER, schedules.describe(parts.schedule))
        _write_json(staged / INDEX, _PIPELINE)
    return notes


def _schedule(config: DictConfig) -> Schedule | None:
    denoiser = config.task.denoiser
    grid = OmegaConf.select(config, "sampler.grid", default={})
    return schedules.of_nodes(denoiser.path, denoiser.parameterization, grid)


def _statistics(codec: LatentCodec) -> Statistics:
    return Statistics(tuple(codec.mean.flatten().tolist()), tuple(codec.std.flatten().tolist()))


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
