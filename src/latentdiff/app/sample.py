"""sample.py: prompts, classes and pictures to PNG files and a grid.

What is made follows from what the checkpoint reads and what is given: see configs/sample.yaml.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from latentdiff.app import build as make
from latentdiff.app import run_dir as runs
from latentdiff.app.generate import load_generator
from latentdiff.app.sample_inputs import read_fields
from latentdiff.app.sample_request import Reads, Request, Scene, check_request, label_of, read_request
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.diffusion.trajectory import Trajectory
from latentdiff.evaluation.animation import save_animation
from latentdiff.evaluation.grid import save_grid
from latentdiff.evaluation.inputs import condition_pictures
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.generation.repaint import Repaint
from latentdiff.types import Batch

MOST_FRAMES = 50
"""Of a trajectory; of a sampling in more steps, as many at even distances."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """One image to make."""

    scene: Scene
    seed: int
    label: int | None
    fields: dict[str, Tensor]
    """The scene's pictures, as fields of a batch without its first axis."""

    @property
    def caption(self) -> str:
        parts = [self.scene.prompt, None if self.scene.label is None else f"class {self.scene.label}"]
        return " ".join([*filter(None, parts), f"({self.seed})"])


@dataclass(frozen=True)
class Made:
    """Images (N, 3, H, W) and, where the trajectory is wanted, their frames (T, N, 3, H, W), batch by batch."""

    images: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)


def run(cfg: DictConfig) -> None:
    """One image per scene and seed; what it was made from and the settings are in each PNG's text chunks."""
    request = read_request(cfg)
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    store.read_manifest(path, expect_kind="diffusion")
    device, precision = make.device(cfg.trainer)
    generator = load_generator(cfg, path, device, precision)
    pipeline, reads = generator.pipeline, Reads.of(generator)
    check_request(request, reads, generator)
    wanted = _wanted(request, reads, _side(pipeline))
    _warn_of_cut_prompts(pipeline, request)
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name="samples")
    made, repaint = Made(), request.repaint_for(reads)
    for start in range(0, len(wanted), cfg.batch_size):
        _make(pipeline, wanted[start : start + cfg.batch_size], request, repaint, made)
    stacked, about = torch.cat(made.images), request.about(reads)
    about["latentdiff"] = json.dumps({"checkpoint": str(path), **pipeline.describe()})
    for i, (one, image) in enumerate(zip(wanted, stacked)):
        _save(where / f"{i:04d}-seed{one.seed}.png", image, {**one.scene.about(), "seed": str(one.seed), **about})
    _save_grids(where, wanted, request, stacked, made.frames)
    print(f"{len(wanted)} images and grid.png in {where}", flush=True)


def _side(pipeline: LatentPipeline) -> int:
    height, width = (side * pipeline.codec.factor for side in pipeline.latent_shape[1:])
    if height != width:
        raise InputError(f"data.size: expected a square, got {height}x{width}")
    return height


def _wanted(request: Request, reads: Reads, size: int) -> list[Wanted]:
    """Scene by scene, each with every seed."""
    wanted = []
    for scene in request.scenes:
        label, given = label_of(scene, reads), read_fields(scene, reads, size)
        wanted += [Wanted(scene, seed, label, given) for seed in request.seeds]
    return wanted


def _warn_of_cut_prompts(pipeline: LatentPipeline, request: Request) -> None:
    """Says once which prompts have more tokens than the model reads."""
    cut_captions = getattr(pipeline.conditioner, "cut_captions", None)
    texts = [text for scene in request.scenes for text in (scene.prompt, scene.negative_prompt) if text]
    cut = cut_captions(list(dict.fromkeys(texts))) if cut_captions else []
    if cut:
        named = "; ".join(f"'{text}' ({count} tokens)" for text, count in cut)
        _log.warning("the model does not read the end of prompts that are too long: %s", named)


def _batch(part: list[Wanted]) -> Batch:
    """Named by seed: an image depends on its own scene and seed alone, also where a conditioner draws by key."""
    first = part[0]
    return Batch(
        keys=[str(one.seed) for one in part],
        caption=None if first.scene.prompt is None else [one.scene.prompt for one in part],
        label=None if first.label is None else torch.tensor([one.label for one in part]),
        **{name: torch.stack([one.fields[name] for one in part]) for name in first.fields},
    )


def _make(pipeline: LatentPipeline, part: list[Wanted], request: Request, repaint: Repaint | None, made: Made) -> None:
    batch = _batch(part)
    negative = None
    if request.has("negative_prompt"):
        negative = replace(batch, caption=[one.scene.negative_prompt for one in part])
    recorder = None
    if request.trajectory:
        recorder = Trajectory.evenly(pipeline.count_steps(request.strength, repaint), MOST_FRAMES)
    seeds = [one.seed for one in part]
    latents = pipeline.latents(batch, seeds, recorder, negative=negative, strength=request.strength, repaint=repaint)
    known = batch if request.paste else replace(batch, mask=None)
    made.images.append(pasted(pipeline.decode(latents, batch).cpu(), known))
    if recorder is not None:
        made.frames.append(torch.stack([pasted(pipeline.decode(frame).cpu(), known) for frame in recorder.frames]))


def pasted(images: Tensor, batch: Batch) -> Tensor:
    """uint8 (B, 3, H, W): the made images in the hole of ``batch.mask``, ``batch.image`` around it, which the first
    stage would change a little; the made images where there is no mask."""
    return images if batch.mask is None else torch.where(batch.mask.bool(), images, batch.image)


def _save(path: Path, image: Tensor, about: dict[str, str]) -> None:
    text = PngInfo()
    for name, value in about.items():
        text.add_itxt(name, value)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, pnginfo=text)


def _save_grids(where: Path, wanted: list[Wanted], request: Request, images: Tensor, frames: list[Tensor]) -> None:
    """``grid.png``, one row per scene, its pictures first where it has some; ``trajectory-0000.png`` and so on, one per
    scene: a grid of its seeds."""
    seeds, scale = len(request.seeds), max(1, 128 // images.shape[-1])
    shown = _pictures(_batch(wanted[::seeds]), request, tuple(images.shape[-2:]))
    columns = len(shown) + seeds if shown else max(4, seeds)
    cells, texts = [], []
    for i, row in enumerate(images.split(seeds)):
        cells += [*(picture[i] for _, picture in shown), *row]
        texts += [*(name for name, _ in shown), *(one.caption for one in wanted[i * seeds :][:seeds])]
    save_grid(where / "grid.png", torch.stack(cells), texts, columns=columns, scale=scale)
    for i, part in enumerate(torch.cat(frames, dim=1).split(seeds, dim=1) if frames else ()):
        save_animation(where / f"trajectory-{i:04d}.png", part, max(4, seeds), scale)


def _pictures(batch: Batch, request: Request, size: tuple[int, int]) -> list[tuple[str, Tensor]]:
    """What the scenes were made from, uint8 (scenes, 3, H, W) each, with a word for it."""
    start = [] if request.strength is None else [("image", batch.image)]
    conditions = condition_pictures(batch, size)
    return [*start, *zip(["given"] * len(conditions), conditions)]
