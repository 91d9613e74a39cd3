"""The work behind the demo page: one model, loaded once, and the images that its visitors ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from latentdiff.app import build as make
from latentdiff.app.composed import composed
from latentdiff.app.generate import Generator, generator_of
from latentdiff.app.launch import find_configs
from latentdiff.app.page.form import OWN, Form, command, named
from latentdiff.app.page.progress import Progress, Visitor, Watch, followed
from latentdiff.app.sampling import record as sample_record
from latentdiff.app.sampling.images import (
    Wanted,
    about,
    cut_prompts,
    frame_images,
    image_size,
    make_images,
    save_image,
    wanted_images,
)
from latentdiff.app.sampling.request import FILES, Reads, Request, Scene, check_request, read_request
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import DiffusionModel, load_diffusion
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.generation.pipeline import LatentPipeline


@dataclass(frozen=True)
class Made:
    """Images that are there."""

    files: list[Path]
    """PNG, one per seed, with their text chunks."""
    drawn: list[Path]
    """The image and the mask of what was painted, which the command names."""
    about: dict[str, str]
    """The text chunks of the first."""
    command: str
    """Makes the same with sample.py."""
    note: str
    """On what the model did not read, empty where it read all."""


@dataclass(frozen=True)
class Asked:
    """A form, held against the model."""

    generator: Generator
    request: Request
    wanted: list[Wanted]
    told: list[Wanted]
    """The same for their readers, who know uploaded files by their names alone."""
    record: Mapping[str, object]
    """See ``sample_record``."""
    command: str


class Studio:
    """Makes images as sample.py would, one request at a time.

    Args:
        model: of stage two, on any device.
        path: its checkpoint directory, which the images' text chunks name.
        base: overrides of sample.py that hold for every request: checkpoint, device, first stage.

    Raises InputError where the model cannot make images as ``base`` has it.
    """

    def __init__(self, *, model: DiffusionModel, path: Path, base: list[str]):
        self.model, self.path, self.base = model, path, base
        self._pool, self._served = ThreadPoolExecutor(max_workers=1), Visitor()
        generator = self._generator(composed("sample", base))
        self.reads, self.size = Reads.of(generator), image_size(generator.pipeline)
        self.samplers = self._samplers()
        """Those that fit the model's path -> how many steps they make where nothing is said."""

    @classmethod
    def of(cls, checkpoint: str, *, device: str, first_stage: str | None) -> Studio:
        """``device``: a group of configs/trainer. Raises InputError for a checkpoint that sample.py would refuse."""
        base = [f"checkpoint={checkpoint}"]
        base += [] if device == "auto" else [f"trainer={device}"]
        base += [] if first_stage is None else [f"first_stage.checkpoint={first_stage}"]
        cfg = composed("sample", base)
        make.device(cfg.trainer)
        path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
        store.read_manifest(path, expect_kind="diffusion")
        return cls(model=load_diffusion(path, first_stage=first_stage), path=path, base=base)

    @property
    def name(self) -> str:
        """Of the run, else of the checkpoint's folder."""
        return self.path.parents[1].name if self.path.parent.name == "checkpoints" else self.path.name

    @property
    def scales(self) -> Mapping[str, float]:
        """Keys of sample.py's configuration, and the checkpoint's own values; none where nothing is guided."""
        own = self.model.config.guidance
        each = {f"+guidance.scales.{name}": scale for name, scale in own.get("scales", {}).items()}
        return {"guidance.scale": own.scale} if "scale" in own else each

    @property
    def takes_negative(self) -> bool:
        """Whether guidance compares with a condition that a negative prompt can take the place of."""
        return self.reads.captions and "guidance.scale" in self.scales and self.model.conditioner.drop > 0

    def follow(self, form: Form, folder: Path, visitor: Visitor) -> Iterator[Progress | Made | None]:
        """The images of a form, written to ``folder``: how far they are, None where that is as before, and at last what
        was made.

        Raises InputError for a form that cannot be used, and StoppedError when the visitor stops it.
        """
        return followed(self._pool, lambda tell: self._make(form, folder, visitor, tell), visitor)

    def close(self) -> None:
        """Stops what runs and waits for its end."""
        self._served.stopped = True
        self._pool.shutdown(cancel_futures=True)

    def _generator(self, cfg: DictConfig) -> Generator:
        return generator_of(self.model, cfg, *make.device(cfg.trainer))

    def _samplers(self) -> dict[str, int]:
        found, denoiser = {OWN: self.model.config.sampler.steps}, self.model.denoiser
        for file in sorted((find_configs("sample") / "sampler").glob("*.yaml")):
            node = OmegaConf.load(file)
            if "grid" in node:  # checkpoint.yaml has none
                with suppress(InputError):  # one of a table, for a path without
                    build(node.grid)(denoiser.path, node.steps, denoiser.t_max)
                    found[file.stem] = node.steps
        return found

    def _make(self, form: Form, folder: Path, visitor: Visitor, tell: Callable[[Progress], None]) -> Made:
        self._served, asked = visitor, self._asked(form, folder)
        pipeline, request, repaint = asked.generator.pipeline, asked.request, asked.request.repaint_for(self.reads)
        watch = Watch(
            total=pipeline.count_steps(request.strength, repaint),
            show=lambda x0_hat: frame_images(pipeline, x0_hat[None], asked.wanted, request)[0],
            report=tell,
            visitor=visitor,
        )
        return _saved(asked, make_images(pipeline, asked.wanted, request, repaint, watch), folder)

    def _asked(self, form: Form, folder: Path) -> Asked:
        """Raises InputError."""
        if form.sampler not in self.samplers:
            raise InputError(f"Sampler: there is no '{form.sampler}'; choose one of {', '.join(self.samplers)}")
        settings, scene = form.settings(self.reads), form.scene(self.reads, folder)
        cfg = composed("sample", [*self.base, *settings])
        request = read_request(cfg, [scene])
        try:
            generator = self._generator(cfg)
            check_request(request, self.reads, generator)
            wanted = wanted_images(request, self.reads, self.size)
        except InputError as error:
            raise _without_folders(error, scene) from error
        told = [replace(one, scene=named(scene)) for one in wanted]
        record = sample_record.made_by(cfg, generator, self.path, request, self.reads)
        record["images"] = sample_record.entries(told, cfg.batch_size)
        return Asked(generator, request, wanted, told, record, command(self.base, named(scene), settings))


def _saved(asked: Asked, images: Tensor, folder: Path) -> Made:
    files, texts = [], []
    for one, image, entry in zip(asked.told, images, asked.record["images"], strict=True):
        texts.append(about(one, asked.request, {**asked.record, "images": [entry]}))
        files.append(folder / entry["file"])
        save_image(files[-1], image, texts[-1])
    scene = asked.request.scenes[0]
    drawn = [path for path in (scene.image, scene.mask) if path is not None and path.parent == folder]
    return Made(files, drawn, texts[0], asked.command, _unread(asked.generator.pipeline, scene))


def _unread(pipeline: LatentPipeline, scene: Scene) -> str:
    cut = cut_prompts(pipeline, [scene])
    return "; ".join(f"the model did not read the end of '{text}' ({tokens} tokens)" for text, tokens in cut)


def _without_folders(error: InputError, scene: Scene) -> InputError:
    """The same message with the names of uploaded files alone."""
    message = str(error)
    for path in filter(None, (getattr(scene, name) for name in FILES)):
        message = message.replace(str(path), path.name)
    return InputError(message)
