"""evaluate.py: the numbers of a checkpoint, with the card that says how they were obtained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from latentdiff.app import build as make
from latentdiff.app import run_dir as runs
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_codec, load_diffusion
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.config.validate import validate
from latentdiff.data.datamodule import DataModule
from latentdiff.evaluation import card, engine, report
from latentdiff.evaluation.grid import save_grid
from latentdiff.generation.pipeline import LatentPipeline, Reconstruction
from latentdiff.metrics.caption_accuracy import CaptionAccuracy
from latentdiff.metrics.reconstruction import Psnr
from latentdiff.types import Batch

GRID_IMAGES = 32


@dataclass(frozen=True)
class Subject:
    """What is evaluated: images from conditions, and the checkpoint behind it."""

    generate: Callable[[Batch, list[int]], Tensor]
    reconstruct: Reconstruction
    data: DictConfig
    path: Path
    reads_captions: bool


def run(cfg: DictConfig) -> None:
    """Generate (stage two) or reconstruct (stage one) ``num_images`` validation samples and measure them."""
    console = Console()
    device, precision = make.device(cfg.trainer)
    subject = _subject(cfg, device, precision)
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name="evaluate")
    data: DataModule = build(subject.data.module)
    data.require_captions |= subject.reads_captions
    data.prepare_data()
    if cfg.num_images > (available := len(data.val_set)):
        raise InputError(f"num_images: {cfg.num_images} are wanted, but there are {available} validation samples")
    metrics = {name: build(node) for name, node in _metrics(cfg, subject).items()}
    if isinstance(subject.generate, Reconstruction):
        metrics["reconstruction"] = Psnr()
    began, first = time.perf_counter(), []

    def keep(images: Tensor, batch: Batch) -> None:
        room = GRID_IMAGES - sum(len(images) for images, _ in first)
        if room > 0:
            first.append((images[:room].cpu(), (batch.caption or [""] * len(batch))[:room]))

    settings = {"num_images": cfg.num_images, "batch_size": cfg.batch_size, "seed": cfg.seed}
    samples = engine.LoadedSamples(data.val_dataloader())
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("images", total=cfg.num_images)
        results = engine.evaluate(
            subject.generate,
            samples,
            metrics,
            **settings,
            on_images=keep,
            progress=lambda n: progress.advance(task, n),
        )
    _add_control(results, metrics, subject, samples, settings)
    about = card.protocol_card(
        checkpoint=subject.path,
        weights="ema",
        generate=subject.generate,
        metrics=metrics,
        data=f"{data.source.name}, validation samples 0 to {cfg.num_images - 1}",
        image_size=data.image_size,
        wall_seconds=time.perf_counter() - began,
        **settings,
    )
    report.write_results(where / "results.json", results, about)
    images, captions = torch.cat([i for i, _ in first]), [c for _, some in first for c in some]
    save_grid(where / "grid.png", images, captions=captions if any(captions) else None, columns=8, scale=_scale(images))
    console.print(report.results_table(results, title=f"{subject.path} on {cfg.num_images} {data.source.name} samples"))
    console.print(f"results: {where / 'results.json'}   grid: {where / 'grid.png'}", soft_wrap=True)


def _subject(cfg: DictConfig, device: torch.device, precision: torch.dtype | None) -> Subject:
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    if store.read_manifest(path).kind == "autoencoder":
        reconstruct = Reconstruction(codec=load_codec(path).to(device), device=device)
        return Subject(reconstruct, reconstruct, _data(cfg, load_config(path / store.CONFIG)), path, False)
    pipeline, config, reconstruct = load_pipeline(cfg, path, device, precision)
    return Subject(pipeline, reconstruct, _data(cfg, config), path, config.conditioner.get("reads_captions", False))


def load_pipeline(
    cfg: DictConfig, path: Path, device: torch.device, precision: torch.dtype | None
) -> tuple[LatentPipeline, DictConfig, Reconstruction]:
    """A stage-two checkpoint ready to generate as the program is configured, its own configuration, its codec."""
    model = load_diffusion(path, first_stage=cfg.first_stage.checkpoint)
    sampler = overlaid(cfg.sampler, model.config.sampler, "solver")
    guidance = overlaid(cfg.guidance, model.config.guidance, "_target_")
    _check(sampler, guidance)
    pipeline = LatentPipeline(
        denoiser=model.denoiser.to(device),
        conditioner=model.conditioner.to(device),
        codec=model.codec.to(device),
        sampler=build(sampler.solver),
        grid=build(sampler.grid),
        steps=sampler.steps,
        guidance=build(guidance),
        image_size=_data(cfg, model.config).size,
        precision=precision,
    )
    return pipeline, model.config, Reconstruction(codec=model.codec, device=device)


def overlaid(given: DictConfig, own: DictConfig, marker: str) -> DictConfig:
    """The program's own node where it is whole (it has ``marker``), else the checkpoint's with the values given."""
    if marker in given:
        return given
    values = {key: value for key, value in given.items() if value is not None}
    for key in values:
        if key not in own:
            raise InputError(f"the checkpoint's configuration has no '{key}' here; it has {', '.join(own)}")
    return OmegaConf.merge(own, values)


def _check(sampler: DictConfig, guidance: DictConfig) -> None:
    """What the command line put over the checkpoint's values has been held against no signature yet."""
    faults = validate(OmegaConf.create({"sampler": sampler, "guidance": guidance}))
    if faults:
        raise InputError("\n".join(map(str, faults)))
    if not isinstance(sampler.steps, int) or sampler.steps < 1:
        raise InputError(f"sampler.steps: expected a whole number of at least 1, got {sampler.steps!r}")


def _data(cfg: DictConfig, config: DictConfig) -> DictConfig:
    return config.data if cfg.get("data") is None else cfg.data


def _metrics(cfg: DictConfig, subject: Subject) -> DictConfig:
    return subject.data.metrics if not cfg.metrics else cfg.metrics


def _add_control(results: dict, metrics: dict, subject: Subject, samples, settings: dict) -> None:
    """Caption accuracy of real scenes that only went through stage one: what no sample of stage two can pass."""
    names = [name for name, metric in metrics.items() if isinstance(metric, CaptionAccuracy)]
    if not names or subject.generate is subject.reconstruct:
        return
    control = engine.evaluate(subject.reconstruct, samples, {"captions": CaptionAccuracy()}, **settings)["captions"]
    control.pop("shuffled")
    for name in names:
        results[name]["reconstructions"] = control


def _scale(images: Tensor) -> int:
    return max(1, 128 // images.shape[-1])
