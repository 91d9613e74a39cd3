"""sample.py: prompts to PNG files and a grid."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from latentdiff.app import build as make
from latentdiff.app import run_dir as runs
from latentdiff.app.generate import Generator, load_generator
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.diffusion.trajectory import Trajectory
from latentdiff.evaluation.animation import save_animation
from latentdiff.evaluation.grid import save_grid
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.types import Batch

MOST_FRAMES = 50
"""Of a trajectory; of a sampling in more steps, as many at even distances."""


@dataclass(frozen=True)
class Wanted:
    """One image to make."""

    prompt: str
    seed: int
    negative: str | None
    label: int | None

    def about(self) -> dict[str, str]:
        """For its PNG's text chunks."""
        found = {"prompt": self.prompt, "seed": self.seed, "negative_prompt": self.negative, "label": self.label}
        return {name: str(value) for name, value in found.items() if value is not None}


@dataclass
class Made:
    """Images (N, 3, H, W) and, where the trajectory is wanted, their frames (T, N, 3, H, W), batch by batch."""

    images: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)


def run(cfg: DictConfig) -> None:
    """One image per prompt and seed; prompt, seed and settings are in each PNG's text chunks."""
    wanted = _wanted(cfg)
    if cfg.batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {cfg.batch_size}")
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    store.read_manifest(path, expect_kind="diffusion")
    device, precision = make.device(cfg.trainer)
    generator = load_generator(cfg, path, device, precision)
    _check(cfg, wanted, generator)
    pipeline = generator.pipeline
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name="samples")
    made = Made()
    for start in range(0, len(wanted), cfg.batch_size):
        _make(pipeline, wanted[start : start + cfg.batch_size], start, cfg.trajectory, made)
    stacked = torch.cat(made.images)
    settings = json.dumps({"checkpoint": str(path), **pipeline.describe()})
    for i, (one, image) in enumerate(zip(wanted, stacked)):
        text = PngInfo()
        for name, value in {**one.about(), "latentdiff": settings}.items():
            text.add_itxt(name, value)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(where / f"{i:04d}-seed{one.seed}.png", pnginfo=text)
    captions = [f"{one.prompt} ({one.seed})" for one in wanted]
    columns, scale = max(4, len(cfg.seeds)), max(1, 128 // stacked.shape[-1])
    save_grid(where / "grid.png", stacked, captions, columns=columns, scale=scale)
    if cfg.trajectory:
        _save_trajectories(where, torch.cat(made.frames, dim=1), len(cfg.seeds), columns, scale)
    print(f"{len(wanted)} images and grid.png in {where}", flush=True)


def _wanted(cfg: DictConfig) -> list[Wanted]:
    """Prompt by prompt, each with every seed."""
    prompts = list(cfg.prompt) if isinstance(cfg.prompt, ListConfig) else [str(cfg.prompt)]
    if not prompts or not cfg.seeds:
        raise InputError("prompt and seeds: at least one of each is needed, e.g. prompt='a red circle' seeds=[0,1]")
    negatives = _per_prompt("negative_prompt", cfg.negative_prompt, len(prompts))
    labels = _per_prompt("label", cfg.label, len(prompts))
    if strange := [label for label in labels if type(label) not in (int, type(None))]:
        raise InputError(f"label: expected the number of a class, or a list of one per prompt, got {strange[0]!r}")
    return [
        Wanted(str(prompt), seed, None if negative is None else str(negative), label)
        for prompt, negative, label in zip(prompts, negatives, labels)
        for seed in cfg.seeds
    ]


def _per_prompt(key: str, value: object, count: int) -> list:
    """One value for all prompts, or a list of one per prompt."""
    if not isinstance(value, ListConfig):
        return [value] * count
    if len(value) != count or any(one is None for one in value):
        raise InputError(f"{key}: expected one value, or a list of one for each of the {count} prompts; got {value}")
    return list(value)


def _check(cfg: DictConfig, wanted: list[Wanted], generator: Generator) -> None:
    """Raises InputError for a condition that nothing would read, and for a class that is needed and not given."""
    guidance = generator.pipeline.guidance
    if cfg.negative_prompt is not None and not guidance.needs_null:
        raise InputError(
            f"negative_prompt: {type(guidance).__name__} as configured compares with no other condition; choose "
            "guidance=classifier_free and a guidance.scale above 1"
        )
    if cfg.label is None and generator.reads_labels:
        raise InputError("label: which class? Give its number, or a list of one per prompt, e.g. label=3")
    if cfg.label is not None and not generator.reads_labels:
        raise InputError(
            "label: nothing reads it here; choose guidance=classifier guidance.checkpoint=PATH, or leave it"
        )
    if hasattr(guidance, "classifier"):
        labels = torch.tensor([one.label for one in wanted])
        guidance.classifier.check_labels(labels, [one.prompt for one in wanted])


def _make(pipeline: LatentPipeline, part: list[Wanted], start: int, trajectory: bool, made: Made) -> None:
    keys = [str(start + i) for i in range(len(part))]
    label = None if part[0].label is None else torch.tensor([one.label for one in part])
    batch = Batch(keys=keys, caption=[one.prompt for one in part], label=label)
    negative = None
    if part[0].negative is not None:
        negative = Batch(keys=keys, caption=[one.negative for one in part], label=label)
    recorder = Trajectory.evenly(len(pipeline.times) - 1, MOST_FRAMES) if trajectory else None
    latents = pipeline.latents(batch, [one.seed for one in part], recorder, negative=negative)
    made.images.append(pipeline.decode(latents).cpu())
    if recorder is not None:
        made.frames.append(torch.stack([pipeline.decode(frame).cpu() for frame in recorder.frames]))


def _save_trajectories(where: Path, frames: Tensor, seeds: int, columns: int, scale: int) -> None:
    """``trajectory-0000.png`` and so on, one per prompt: a grid of its seeds."""
    for i, part in enumerate(frames.split(seeds, dim=1)):
        save_animation(where / f"trajectory-{i:04d}.png", part, columns, scale)
