"""The images that sample.py and the demo page make: which ones, in batches, and what is written into their files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from latentdiff import durable
from latentdiff.app.sampling.inputs import read_fields
from latentdiff.app.sampling.request import FILES, Reads, Request, Scene, label_of
from latentdiff.config.errors import InputError
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.generation.repaint import Repaint
from latentdiff.types import Batch, OnStep

TEXT_KEY = "latentdiff"
"""The text chunk with the whole record."""


@dataclass(frozen=True)
class Wanted:
    """One image to make."""

    scene: Scene
    seed: int
    label: int | None
    reads: Reads
    size: tuple[int, int]
    """Height and width."""
    sha256: Mapping[str, str]
    """Of the scene's files, by their names in ``Scene``."""

    @property
    def caption(self) -> str:
        parts = [self.scene.prompt, None if self.scene.label is None else f"class {self.scene.label}"]
        return " ".join([*filter(None, parts), f"({self.seed})"])

    def fields(self) -> dict[str, Tensor]:
        """The scene's pictures, as fields of a batch without its first axis; read anew at each call."""
        return read_fields(self.scene, self.reads, self.size)

    def about(self) -> dict[str, object]:
        """What it is made from, JSON-ready."""
        typed = {name: value for name in ("label", "numbers") if (value := getattr(self.scene, name)) is not None}
        digests = {"sha256": dict(self.sha256)} if self.sha256 else {}
        return {**self.scene.about(), **typed, "seed": self.seed, **digests}


def image_size(pipeline: LatentPipeline) -> tuple[int, int]:
    """Height and width of what it makes."""
    height, width = (side * pipeline.codec.factor for side in pipeline.latent_shape[1:])
    return height, width


def wanted_images(request: Request, reads: Reads, size: tuple[int, int]) -> list[Wanted]:
    """Scene by scene, each with every seed. All pictures are looked at once, none is kept.

    Raises InputError for those that cannot be used.
    """
    wanted = []
    for scene in request.scenes:
        try:
            label = label_of(scene, reads)
            read_fields(scene, reads, size)
        except InputError as error:
            raise scene.fault(error) from error
        digests = {name: durable.sha256(path) for name in FILES if (path := getattr(scene, name)) is not None}
        seeds = request.seeds if scene.seed is None else [scene.seed]
        wanted += [Wanted(scene, seed, label, reads, size, digests) for seed in seeds]
    return wanted


def batch_of(part: list[Wanted]) -> Batch:
    """Named by seed: an image depends on its own scene and seed alone, also where a conditioner draws by key."""
    first, given = part[0], {one.scene: one for one in part}
    fields = {scene: one.fields() for scene, one in given.items()}
    return Batch(
        keys=[str(one.seed) for one in part],
        caption=None if first.scene.prompt is None else [one.scene.prompt for one in part],
        label=None if first.label is None else torch.tensor([one.label for one in part]),
        **{name: torch.stack([fields[one.scene][name] for one in part]) for name in fields[first.scene]},
    )


def make_images(
    pipeline: LatentPipeline,
    part: list[Wanted],
    request: Request,
    repaint: Repaint | None,
    on_step: OnStep | None = None,
) -> Tensor:
    """One batch: uint8 (N, 3, H, W) on the CPU.

    Args:
        repaint: ``request.repaint_for(reads)``.
        on_step: the sampler's, called ``pipeline.count_steps(request.strength, repaint)`` times; its latents are made
            visible by ``frame_images``.
    """
    batch = batch_of(part)
    negative = None
    if request.has("negative_prompt"):
        negative = replace(batch, caption=[one.scene.negative_prompt for one in part])
    seeds = [one.seed for one in part]
    latents = pipeline.latents(batch, seeds, on_step, negative=negative, strength=request.strength, repaint=repaint)
    return pasted(pipeline.decode(latents, batch).cpu(), _known(batch, request))


def frame_images(pipeline: LatentPipeline, frames: Tensor, part: list[Wanted], request: Request) -> Tensor:
    """Latents of these images on their way (T, N, C, h, w) -> uint8 (T, N, 3, H, W) on the CPU."""
    known = _known(batch_of(part), request)
    return torch.stack([pasted(pipeline.decode(frame).cpu(), known) for frame in frames])


def pasted(images: Tensor, batch: Batch) -> Tensor:
    """uint8 (B, 3, H, W): the made images in the hole of ``batch.mask``, ``batch.image`` around it, which the first
    stage would change a little; the made images where there is no mask."""
    return images if batch.mask is None else torch.where(batch.mask.bool(), images, batch.image)


def about(one: Wanted, request: Request, record: Mapping[str, object]) -> dict[str, str]:
    """A PNG's text chunks: what the image was made from, for people; and all that is known of it, as JSON.

    Args:
        record: JSON-ready, see ``sample_record``; stands under ``TEXT_KEY``.
    """
    told = {**one.scene.about(), "seed": str(one.seed), **request.about(one.reads)}
    return {**told, TEXT_KEY: json.dumps(record)}


def save_image(path: Path, image: Tensor, told: Mapping[str, str]) -> None:
    """uint8 (3, H, W) as a PNG with these text chunks, see ``about``; whole or not at all."""
    text = PngInfo()
    for name, value in told.items():
        text.add_itxt(name, value)
    with durable.new_file(path) as staged:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(staged, format="PNG", pnginfo=text)


def cut_prompts(pipeline: LatentPipeline, scenes: Iterable[Scene]) -> list[tuple[str, int]]:
    """The prompts with more tokens than the model reads, once each, with how many they have."""
    cut_captions = getattr(pipeline.conditioner, "cut_captions", lambda texts: [])
    texts = [text for scene in scenes for text in (scene.prompt, scene.negative_prompt) if text]
    return cut_captions(list(dict.fromkeys(texts)))


def _known(batch: Batch, request: Request) -> Batch:
    """``batch``, without a mask where nothing is to be pasted."""
    return batch if request.paste else replace(batch, mask=None)
