"""What sample.py is asked for, held against what the model reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from latentdiff.app.generate import Generator
from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.config.instantiate import build
from latentdiff.data.conditions import Condition
from latentdiff.data.segmentation import EdgeMaps
from latentdiff.generation.repaint import Repaint

FILES = ("image", "mask", "map")
SEEDS = (0, 1, 2, 3)
"""Of each scene, where none are given."""
GIVEN = ("prompt", "negative_prompt", "label", "numbers", *FILES)


@dataclass(frozen=True)
class Scene:
    """What images are made of; one of it is drawn with each seed."""

    prompt: str | None
    negative_prompt: str | None
    label: int | str | None
    image: Path | None
    mask: Path | None
    map: Path | None
    numbers: float | None = None
    seed: int | None = None
    """Its own, in the place of the request's."""
    source: str | None = None
    """Where it was written, e.g. a line of a file."""

    def about(self) -> dict[str, str]:
        """What it holds, for its PNGs' text chunks."""
        return {name: str(value) for name in GIVEN if (value := getattr(self, name)) is not None}

    def fault(self, error: InputError) -> InputError:
        """``error``, with the place where the scene was written."""
        return error if self.source is None else InputError(f"{self.source}: {error}")


@dataclass(frozen=True)
class Request:
    """All scenes, and how they are drawn. Every scene has a value of its own where the first has one."""

    scenes: list[Scene]
    seeds: list[int]
    strength: float | None
    repaint: Repaint
    paste: bool
    """Whether known pixels around a hole are the image's own."""
    trajectory: bool
    size: tuple[int, int] | None = None
    """Height and width; None: what the model was trained on."""

    def has(self, name: str) -> bool:
        return getattr(self.scenes[0], name) is not None

    def repaint_for(self, reads: Reads) -> Repaint | None:
        """How a hole is to be filled by a model that reads no mask; None where there is none, or the model does."""
        return self.repaint if self.has("mask") and "mask" not in reads.fields else None

    def about(self, reads: Reads) -> dict[str, str]:
        """What holds for all scenes, for their PNGs' text chunks."""
        found = {} if self.strength is None else {"strength": str(self.strength)}
        if self.has("mask"):
            found["paste"] = str(self.paste).lower()
        if repaint := self.repaint_for(reads):
            found["repaint"] = f"jump_length={repaint.jump_length}, resample={repaint.resample}"
        return found


@dataclass(frozen=True)
class Reads:
    """What a model is conditioned on."""

    captions: bool
    labels: bool
    """By the conditioner or by a classifier that guides."""
    classes: int | None
    class_names: list[str] | None
    fields: Mapping[str, Condition]
    """Fields of ``Batch``, each with what its training data were made with."""

    @classmethod
    def of(cls, generator: Generator) -> Reads:
        conditioner = generator.config.conditioner
        names = OmegaConf.select(generator.config, "data.module.class_names")
        made = conditioner.get("conditions")
        return cls(
            captions=generator.reads_captions,
            labels=generator.reads_labels,
            classes=conditioner.get("classes"),
            class_names=None if names is None else list(names),
            fields={} if made is None else build(made),
        )

    @property
    def edges(self) -> bool:
        """Whether its maps can be made from an image."""
        return isinstance(self.fields.get("segmentation"), EdgeMaps)


def read_request(cfg: DictConfig, scenes: list[Scene] | None = None) -> Request:
    """What can be known before the model is loaded; ``scenes`` take the place of those that ``cfg`` gives.

    Raises InputError: no seeds, lists that do not fit together, a label that is neither number nor name, numbers that
    are not finite in float32, a strength outside (0, 1], a size that is none, files that are not there.
    """
    seeds = _seeds(cfg.seeds)
    if cfg.batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {cfg.batch_size}")
    if cfg.strength is not None and not 0 < cfg.strength <= 1:
        raise InputError(f"strength: expected a share of the steps in (0, 1], got {cfg.strength}")
    if cfg.repaint is None:
        raise InputError(
            "repaint: expected its settings; repaint.resample=1 only puts the known part back at each step"
        )
    scenes = scenes_given(cfg) if scenes is None else scenes
    for scene in scenes:
        if scene.numbers is not None and not abs(scene.numbers) <= torch.finfo(torch.float32).max:
            raise scene.fault(InputError(f"numbers: expected a finite number, got {scene.numbers}"))
    for scene, name in itertools.product(scenes, FILES):
        path = getattr(scene, name)
        if path is not None and not path.is_file():
            raise scene.fault(InputError(f"{name}: there is no file '{path}'"))
    return Request(
        scenes=scenes,
        seeds=seeds,
        strength=cfg.strength,
        repaint=build(cfg.repaint),
        paste=cfg.paste,
        trajectory=cfg.trajectory,
        size=_size(cfg.size),
    )


def scenes_given(cfg: DictConfig) -> list[Scene]:
    """Those of the configuration itself. Raises InputError for lists of different length and for no label."""
    counts = {name: len(cfg[name]) for name in GIVEN if isinstance(cfg[name], ListConfig)}
    rows = max(counts.values(), default=1)
    columns = {name: _column(name, cfg[name], rows, counts) for name in GIVEN}
    return [Scene(**{name: column[i] for name, column in columns.items()}) for i in range(rows)]


def _seeds(given: object) -> list[int]:
    seeds = list(given) if isinstance(given, ListConfig) else [given]
    if given is None:
        return list(SEEDS)
    if not seeds:
        raise InputError("prompt and seeds: at least one of each is needed, e.g. prompt='a red circle' seeds=[0,1]")
    if strange := [seed for seed in seeds if type(seed) is not int]:
        raise InputError(f"seeds: expected whole numbers, e.g. seeds=[0,1], got {strange[0]!r}")
    return seeds


def _size(size: object) -> tuple[int, int] | None:
    sides = list(size) if isinstance(size, ListConfig) else [size, size]
    if size is None:
        return None
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise InputError(f"size: expected pixels of a side, or [height,width], got {size}")
    return sides[0], sides[1]


def _column(name: str, value: object, rows: int, counts: Mapping[str, int]) -> list:
    """One value for all scenes, or a list of one per scene."""
    values = list(value) if isinstance(value, ListConfig) else [value] * rows
    if len(values) != rows or not values or (name in counts and any(one is None for one in values)):
        listed = ", ".join(f"{count} of {key}" for key, count in counts.items())
        raise InputError(
            f"{name}: expected one value, or a list of one for each image to make; the lists given are {listed}"
        )
    if name == "label":
        if strange := [one for one in values if type(one) not in (int, str, type(None))]:
            raise InputError(f"label: expected the number or the name of a class, got {strange[0]!r}")
        return values
    if name == "numbers":
        if strange := [one for one in values if one is not None and type(one) not in (int, float)]:
            raise InputError(f"numbers: expected a number, or a list of one per image, got {strange[0]!r}")
        return values
    return [None if one is None else Path(str(one)) if name in FILES else str(one) for one in values]


def check_request(request: Request, reads: Reads, generator: Generator) -> None:
    """Raises InputError for what the model needs and is not given, and for what nothing would read."""
    _check_texts(request, reads, generator)
    _check_labels(request, reads, generator)
    _check_numbers(request, reads)
    _check_pictures(request, reads)
    generator.pipeline.count_steps(request.strength, request.repaint_for(reads))


def label_of(scene: Scene, reads: Reads) -> int | None:
    """The number of the scene's class. Raises InputError for an unknown class."""
    label, names, classes = scene.label, reads.class_names, reads.classes
    if isinstance(label, str):
        if names is None:
            raise InputError(f"label: expected the number of a class (its names are not known here), got {label!r}")
        if label not in names:
            raise InputError(
                f"label: unknown class {label!r}{did_you_mean(label, names)}; known are {', '.join(names)}"
            )
        return names.index(label)
    if label is not None and classes is not None and not -1 <= label < classes:
        listed = "" if names is None else f" ({', '.join(names)})"
        raise InputError(f"label: unknown class {label}; expected 0 to {classes - 1}{listed}, or -1 for none")
    return label


def _check_texts(request: Request, reads: Reads, generator: Generator) -> None:
    if reads.captions and not request.has("prompt"):
        raise InputError("prompt: which? The model reads captions, e.g. prompt='a red circle', prompt='' for none")
    if request.has("prompt") and not reads.captions:
        raise InputError("prompt: the model reads no captions; leave it")
    if not request.has("negative_prompt"):
        return
    if not reads.captions:
        raise InputError("negative_prompt: the model reads no captions; leave it")
    guidance = generator.pipeline.guidance
    if getattr(guidance, "parts", ()):
        raise InputError(
            "negative_prompt: Several scales each part by itself, from no condition at all; choose "
            "guidance=classifier_free, or leave it"
        )
    if not guidance.needs_null:
        raise InputError(
            f"negative_prompt: {type(guidance).__name__} as configured compares with no other condition; choose "
            "guidance=classifier_free and a guidance.scale above 1"
        )


def _check_labels(request: Request, reads: Reads, generator: Generator) -> None:
    if not request.has("label") and reads.labels:
        raise InputError("label: which class? Give its number, or a list of one per image, e.g. label=3")
    if request.has("label") and not reads.labels:
        raise InputError(
            "label: nothing reads it here; choose guidance=classifier guidance.checkpoint=PATH, or leave it"
        )
    labels = []
    for scene in request.scenes:
        try:
            labels.append(label_of(scene, reads))
        except InputError as error:
            raise scene.fault(error) from error
    guidance = generator.pipeline.guidance
    if hasattr(guidance, "classifier"):
        names = [scene.source or f"image {i}" for i, scene in enumerate(request.scenes)]
        guidance.classifier.check_labels(torch.tensor(labels), names)


def _check_numbers(request: Request, reads: Reads) -> None:
    if "numbers" in reads.fields and not request.has("numbers"):
        raise InputError("numbers: which? The model reads a number of each image, e.g. numbers=0.5")
    if request.has("numbers") and "numbers" not in reads.fields:
        raise InputError("numbers: the model reads none; leave it")


def _check_pictures(request: Request, reads: Reads) -> None:
    image, mask, has_map = (request.has(name) for name in FILES)
    small, holes, maps = (name in reads.fields for name in ("low_res", "mask", "segmentation"))
    strong = request.strength is not None
    used = small or mask or strong or (reads.edges and not has_map)
    faults = {
        "image: the model reads a small image and one with a hole, and sample.py takes one": small and holes,
        "image: which? The model enlarges images; give a small one, image=PATH": small and not image,
        "mask, strength: the model enlarges images, which starts from noise everywhere; leave them": small
        and (mask or strong),
        "image, mask: which? The model fills holes; give image=PATH and mask=PATH (white is to be made)": holes
        and not (image and mask),
        "map: which? The model reads maps; give map=PATH, a PNG of class indices": maps
        and not has_map
        and not reads.edges,
        "map: which? The model reads maps of edges; give map=PATH, or image=PATH to take the edges of": maps
        and not has_map
        and not image,
        "map: the model reads no maps; leave it": has_map and not maps,
        "mask: of which image? Give image=PATH": mask and not image,
        "strength: of which image? Give image=PATH": strong and not image,
        "image: for what? Give strength=0.7 for a variation of it, or mask=PATH to make a part anew": image
        and not used,
    }
    for message, found in faults.items():
        if found:
            raise InputError(message)
