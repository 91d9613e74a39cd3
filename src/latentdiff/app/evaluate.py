"""evaluate.py: the numbers of a checkpoint, with the card that says how they were obtained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from latentdiff.app import build as make
from latentdiff.app import run_dir as runs
from latentdiff.app.generate import data_of, load_generator
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_codec
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.data.datamodule import DataModule
from latentdiff.evaluation import card, engine, report
from latentdiff.evaluation.bound import MEANING, evaluate_bound
from latentdiff.evaluation.grid import COMPARISON, comparison, save_grid
from latentdiff.evaluation.stage_one import MeasuredReconstruction, above_floor, channels_table
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.metrics.caption_accuracy import CaptionAccuracy
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.paired import Fidelity, Paired
from latentdiff.metrics.patch_pca import PatchPca
from latentdiff.metrics.reconstruction import Psnr, Ssim
from latentdiff.types import Batch, Metric

GRID_IMAGES, GRID_COLUMNS = 32, 8
FLOOR_IMAGES = 1000
"""Training images that the patch PCA is fitted on; it has at most a few hundred components."""
RESULTS_OF_STAGE_ONE = ("patch_pca", "latents")


@dataclass(frozen=True)
class Subject:
    """What is evaluated: images from conditions, and the checkpoint behind it."""

    generate: Callable[[Batch, list[int]], Tensor]
    reconstruct: Callable[[Batch, list[int]], Tensor]
    data: DictConfig
    path: Path
    reads_captions: bool
    reads_labels: bool = False

    @property
    def stage_one(self) -> MeasuredReconstruction | None:
        return self.generate if isinstance(self.generate, MeasuredReconstruction) else None


def run(cfg: DictConfig) -> None:
    """Generate (stage two) or reconstruct (stage one) ``num_images`` validation samples and measure them."""
    console = Console()
    device, precision = make.device(cfg.trainer)
    subject = _subject(cfg, device, precision)
    if cfg.bound and subject.stage_one is not None:
        raise InputError("bound: the variational bound is stage two's; leave it out for a first stage")
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name="evaluate")
    data: DataModule = build(subject.data.module)
    data.require_captions |= subject.reads_captions
    data.require_labels |= subject.reads_labels
    data.prepare_data()
    count, available = cfg.num_images, len(data.val_set)
    if count > available:
        raise InputError(f"num_images: {count} are wanted, but there are {available} validation samples")
    metrics = _metrics(cfg, subject)
    _check_request(count, data, metrics, subject)
    began = time.perf_counter()
    if subject.stage_one is not None:
        metrics = _with_standard(metrics, subject.stage_one, data)
    kept = _Kept(GRID_IMAGES)
    settings = {"num_images": count, "batch_size": cfg.batch_size, "seed": cfg.seed}
    samples = engine.LoadedSamples(data.val_dataloader())
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("images", total=count)
        results = engine.evaluate(
            subject.generate,
            samples,
            metrics,
            **settings,
            on_images=kept.keep,
            progress=lambda n: progress.advance(task, n),
        )
    if subject.stage_one is not None:
        results["reconstruction"] = above_floor(results["reconstruction"], results.pop("patch_pca")["psnr"])
        results["latents"] = subject.stage_one.latent_results()
    _add_control(results, metrics, subject, samples, settings)
    if cfg.bound:
        results["bound"] = _bound(subject.generate, samples, settings)
    about = card.protocol_card(
        checkpoint=subject.path,
        weights="ema",
        generate=subject.generate,
        metrics=metrics,
        data=f"{data.source.name}, validation samples 0 to {count - 1}",
        image_size=data.image_size,
        wall_seconds=time.perf_counter() - began,
        **settings,
    )
    if cfg.bound:
        about["bound"] = MEANING
    report.write_results(where / "results.json", results, about)
    kept.save(where / "grid.png", compare=subject.stage_one is not None)
    console.print(report.results_table(results, title=f"{subject.path} on {count} {data.source.name} samples"))
    if subject.stage_one is not None:
        console.print(channels_table(results["latents"]["channels"]))
    console.print(f"results: {where / 'results.json'}   grid: {where / 'grid.png'}", soft_wrap=True)


class _Kept:
    """The first images of an evaluation, with what the grid shows beside them."""

    def __init__(self, room: int):
        self.room = room
        self.images: list[Tensor] = []
        self.originals: list[Tensor] = []
        self.captions: list[str] = []

    def keep(self, images: Tensor, batch: Batch) -> None:
        count = min(self.room, len(images))
        if count == 0:
            return
        self.room -= count
        self.images.append(images[:count].cpu())
        self.originals += [] if batch.image is None else [batch.image[:count]]
        self.captions += (batch.caption or [""] * len(batch))[:count]

    def save(self, path: Path, *, compare: bool) -> None:
        """The images with their captions, or ``compare``d with their originals."""
        images = torch.cat(self.images)
        columns, scale = min(GRID_COLUMNS, len(images)), max(1, 128 // images.shape[-1])
        if compare:
            cells = comparison(torch.cat(self.originals), images, columns)
            save_grid(path, cells, columns=columns, scale=scale, text=COMPARISON)
        else:
            captions = self.captions if any(self.captions) else None
            save_grid(path, images, captions=captions, columns=columns, scale=scale)


def _subject(cfg: DictConfig, device: torch.device, precision: torch.dtype | None) -> Subject:
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    if store.read_manifest(path).kind == "autoencoder":
        reconstruct = MeasuredReconstruction(codec=load_codec(path).to(device), device=device)
        return Subject(reconstruct, reconstruct, data_of(cfg, load_config(path / store.CONFIG)), path, False)
    made = load_generator(cfg, path, device, precision)
    return Subject(
        made.pipeline, made.reconstruct, data_of(cfg, made.config), path, made.reads_captions, made.reads_labels
    )


def _bound(pipeline: LatentPipeline, samples: engine.Samples, settings: dict) -> dict[str, float]:
    parts = {"denoiser": pipeline.denoiser, "conditioner": pipeline.conditioner, "codec": pipeline.codec}
    return evaluate_bound(**parts, samples=samples, device=pipeline.device, **settings)


def _check_request(count: int, data: DataModule, metrics: dict[str, Metric], subject: Subject) -> None:
    """Raises InputError for what the metrics would find out after the work."""
    if count < 2 and any(isinstance(metric, FrechetDistance) for metric in metrics.values()):
        raise InputError(f"num_images: a Fréchet distance needs at least 2 images, got {count}")
    if subject.stage_one is None:
        return
    known = isinstance(metrics.get("reconstruction"), Fidelity | None)
    if taken := [name for name in metrics if name in RESULTS_OF_STAGE_ONE or (name == "reconstruction" and not known)]:
        raise InputError(f"metrics: '{taken[0]}' is the name of a result that every first stage has; choose another")
    if data.image_size % (factor := subject.stage_one.codec.factor):
        raise InputError(f"data.size: {data.image_size} is not divisible by the autoencoder's factor {factor}")


def _metrics(cfg: DictConfig, subject: Subject) -> dict[str, Metric]:
    """Those asked for, else those of the data."""
    metrics = {name: build(node) for name, node in (cfg.metrics or subject.data.metrics).items()}
    if subject.stage_one is None:
        for name, metric in metrics.items():
            if isinstance(metric, (Paired, Fidelity)):
                raise InputError(
                    f"metrics: '{name}' compares an image with its own original, which a sample of stage two does not "
                    "have; evaluate a stage-one checkpoint with it, or choose another metric"
                )
        return metrics
    return {n: m.of_reconstructions() if isinstance(m, FrechetDistance) else m for n, m in metrics.items()}


def _with_standard(metrics: dict[str, Metric], model: MeasuredReconstruction, data: DataModule) -> dict[str, Metric]:
    """With what every first stage is measured by: PSNR and SSIM, and the patch PCA of equal size."""
    images = (batch.image.to(model.device) for batch in data.statistics_batches(FLOOR_IMAGES))
    standard = {
        "reconstruction": Fidelity(metrics=[Psnr(), Ssim()]),
        "patch_pca": PatchPca(images=images, factor=model.codec.factor, components=model.codec.channels),
    }
    return {**metrics, **standard}


def _add_control(results: dict, metrics: dict, subject: Subject, samples, settings: dict) -> None:
    """Caption accuracy of real scenes that only went through stage one: what no sample of stage two can pass."""
    names = [name for name, metric in metrics.items() if isinstance(metric, CaptionAccuracy)]
    if not names or subject.generate is subject.reconstruct:
        return
    control = engine.evaluate(subject.reconstruct, samples, {"captions": CaptionAccuracy()}, **settings)["captions"]
    control.pop("shuffled")
    for name in names:
        results[name]["reconstructions"] = control
