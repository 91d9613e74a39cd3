"""evaluate.py: the numbers of a checkpoint, with the card that says how they were obtained."""

from __future__ import annotations

import time

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from latentdiff.app import build as make
from latentdiff.app import run_dir as runs
from latentdiff.app.subject import Subject, check_request, data_for, load_subject, metrics_for
from latentdiff.config.errors import InputError
from latentdiff.data.datamodule import DataModule
from latentdiff.evaluation import card, engine, report
from latentdiff.evaluation.baselines import BicubicEnlargement, LatentGaussian, LatentMoments, RealImages
from latentdiff.evaluation.bound import MEANING, evaluate_bound
from latentdiff.evaluation.controls import Control, measure_controls
from latentdiff.evaluation.first_images import FirstImages
from latentdiff.evaluation.stage_one import MeasuredReconstruction, above_floor, channels_table
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.metrics.caption_accuracy import CaptionAccuracy
from latentdiff.metrics.paired import Fidelity
from latentdiff.metrics.patch_pca import PatchPca
from latentdiff.metrics.reconstruction import Psnr, Ssim
from latentdiff.types import Metric

GRID_IMAGES = 32
FITTED_IMAGES = 1000
"""Training images that the patch PCA and the moments of the latents are fitted on."""


def run(cfg: DictConfig) -> None:
    """Generate (stage two) or reconstruct (stage one) ``num_images`` validation samples and measure them."""
    console = Console()
    device, precision = make.device(cfg.trainer)
    subject = load_subject(cfg, device, precision)
    if cfg.bound and subject.stage_one is not None:
        raise InputError("bound: the variational bound is stage two's; leave it out for a first stage")
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name="evaluate")
    data = data_for(cfg, subject)
    metrics = metrics_for(cfg, subject)
    check_request(cfg.num_images, data, metrics, subject)
    began = time.perf_counter()
    if subject.stage_one is not None:
        metrics = _with_standard(metrics, subject.stage_one, data)
    kept = FirstImages(GRID_IMAGES)
    samples = engine.LoadedSamples(data.val_dataloader())
    settings = {"num_images": cfg.num_images, "batch_size": cfg.batch_size, "seed": cfg.seed}
    results = _results(subject, samples, metrics, kept, settings, console)
    controls = {} if subject.stage_one else _controls(cfg, subject, data, samples, metrics)
    beside = _measured(controls, metrics, results, whole=cfg.get("controls", True), settings=settings)
    if cfg.bound:
        results["bound"] = _bound(subject.generate, samples, settings)
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
    about |= {"bound": MEANING} if cfg.bound else {}
    about |= {"controls": {name: _about(controls[name]) for name in beside}} if beside else {}
    report.write_results(where / "results.json", results, about, beside)
    if subject.stage_one is not None:
        kept.save_comparison(where / "grid.png")
    else:
        reads = {"captions": subject.reads_captions, "labels": subject.reads_labels}
        kept.save(where / "grid.png", **reads, class_names=data.class_names)
    title = f"{subject.path} on {cfg.num_images} {data.source.name} samples"
    _show(console, title, results, beside)
    console.print(f"results: {where / 'results.json'}   grid: {where / 'grid.png'}", soft_wrap=True)


def _results(
    subject: Subject,
    samples: engine.Samples,
    metrics: dict[str, Metric],
    kept: FirstImages,
    settings: dict,
    console: Console,
) -> dict[str, dict]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("images", total=settings["num_images"])
        results = engine.evaluate(
            subject.generate,
            samples,
            metrics,
            **settings,
            reconstruct=subject.reconstruct,
            on_images=kept.keep,
            progress=lambda n: progress.advance(task, n),
        )
    if subject.stage_one is not None:
        results["reconstruction"] = above_floor(results["reconstruction"], results.pop("patch_pca")["psnr"])
        results["latents"] = subject.stage_one.latent_results()
    return results


def _bound(pipeline: LatentPipeline, samples: engine.Samples, settings: dict) -> dict[str, float]:
    parts = {"denoiser": pipeline.denoiser, "conditioner": pipeline.conditioner, "codec": pipeline.codec}
    return evaluate_bound(**parts, samples=samples, device=pipeline.device, **settings)


def _with_standard(metrics: dict[str, Metric], model: MeasuredReconstruction, data: DataModule) -> dict[str, Metric]:
    """With what every first stage is measured by: PSNR and SSIM, and the patch PCA of equal size."""
    images = (batch.image.to(model.device) for batch in data.statistics_batches(FITTED_IMAGES))
    standard = {
        "reconstruction": Fidelity(metrics=[Psnr(), Ssim()]),
        "patch_pca": PatchPca(images=images, factor=model.codec.factor, components=model.codec.channels),
    }
    return {**metrics, **standard}


def _controls(
    cfg: DictConfig, subject: Subject, data: DataModule, samples: engine.Samples, metrics: dict[str, Metric]
) -> dict[str, Control]:
    """Real scenes that only went through stage one, which no sample of stage two can pass, and what there is besides:

    small images enlarged; for distances to real images the training images, and latents drawn from a Gaussian.
    """
    count, codec, device = cfg.num_images, subject.reconstruct.codec, subject.reconstruct.device
    controls = {"reconstructions": Control(subject.reconstruct, samples, count)}
    if not cfg.get("controls", True):
        return controls
    if data.preview(1).low_res is not None:
        controls["bicubic"] = Control(BicubicEnlargement(device=device), samples, count)
    if any(isinstance(metric, engine.ComparesWithReal) for metric in metrics.values()):
        images = (batch.image for batch in data.statistics_batches(FITTED_IMAGES))
        gaussian = LatentGaussian(codec=codec, moments=LatentMoments.of(images, codec, device))
        controls["gaussian"] = Control(gaussian, samples, count, conditioned=False)
        training, most = engine.LoadedSamples(data.statistics_batches(count)), min(count, len(data.train_set))
        controls["training_images"] = Control(RealImages(device=device), training, most, conditioned=False)
    return controls


def _measured(
    controls: dict[str, Control], metrics: dict[str, Metric], results: dict, *, whole: bool, settings: dict
) -> dict[str, dict]:
    """The controls' results. Caption accuracy of reconstructions goes with the caption accuracy, always.

    ``whole`` False: nothing but that.
    """
    captions = {name: metric for name, metric in metrics.items() if isinstance(metric, CaptionAccuracy)}
    held = {key: settings[key] for key in ("batch_size", "seed")}
    found = measure_controls(controls, metrics if whole else captions, **held)
    for name in captions.keys() & found.get("reconstructions", {}).keys():
        control = found["reconstructions"].pop(name)
        results[name]["reconstructions"] = {key: value for key, value in control.items() if key != "shuffled"}
    return {name: values for name, values in found.items() if values}


def _about(control: Control) -> dict[str, object]:
    """For the protocol card."""
    return {**control.generate.describe(), "count": control.num_images}


def _show(console: Console, title: str, results: dict, controls: dict) -> None:
    console.print(report.results_table(results, title=title))
    if controls:
        console.print(report.results_table(controls, title="controls: the same of images that the model did not make"))
    if "latents" in results:
        console.print(channels_table(results["latents"]["channels"]))
