"""An evaluation as files: results.json, grid.png and report.html; and as tables."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from latentdiff.app.evaluation.neighbours import neighbours_of
from latentdiff.app.evaluation.one_evaluation import PICTURES, Evaluation
from latentdiff.app.evaluation.parts import Parts
from latentdiff.app.evaluation.work_files import GRID, REPORT, clear
from latentdiff.app.processes import warn
from latentdiff.app.ranks import Ranks
from latentdiff.evaluation import report
from latentdiff.evaluation.compare import RESULTS
from latentdiff.evaluation.first_images import picture_of_reconstructions, picture_of_samples
from latentdiff.evaluation.inputs import condition_pictures, condition_texts
from latentdiff.evaluation.page import Pictures, write_page
from latentdiff.evaluation.stage_one import channels_table


def publish(cfg: DictConfig, parts: Parts, found: Evaluation, where: Path, ranks: Ranks, console: Console) -> None:
    """Writes the files, says the numbers, and clears the work away. To be called on the first rank."""
    report.write_results(where / RESULTS, found.as_file())
    if equal := found.card["observed"]["duplicates"]:
        warn(f"{equal} of {cfg.num_images} images are equal to another")
    _pictures(parts, found, where)
    _page(cfg, parts, found, where, ranks)
    clear(where)
    _show(cfg, parts, found, console)
    console.print(
        f"results: {where / RESULTS}\ngrid:    {where / GRID}\nreport:  {where / REPORT}", soft_wrap=True, markup=False
    )


def _pictures(parts: Parts, found: Evaluation, where: Path) -> None:
    images = found.folder.pictures(PICTURES)
    batch, subject = found.samples(range(len(images))), parts.subject
    if subject.stage_one is not None:
        picture_of_reconstructions(where / GRID, images, batch)
        return
    reads = {"captions": subject.reads_captions, "labels": subject.reads_labels}
    names = None if parts.data is None else parts.data.class_names
    picture_of_samples(where / GRID, images, batch, **reads, class_names=names)


def _page(cfg: DictConfig, parts: Parts, found: Evaluation, where: Path, ranks: Ranks) -> None:
    subject, data = parts.subject, parts.data
    images = found.folder.pictures(max(PICTURES, cfg.neighbours))
    batch = found.samples(range(len(images)))
    near = None
    if data is not None and subject.stage_one is None:
        asked = {"samples": cfg.neighbours, "among": cfg.neighbour_images}
        near = neighbours_of(found.folder, data, parts.metrics, ranks.device, **asked)
    reads = {"captions": subject.reads_captions, "labels": subject.reads_labels}
    texts = condition_texts(batch, **reads, class_names=None if data is None else data.class_names)
    if subject.stage_one is not None:
        beside = [("original", batch.image)]
    else:
        beside = [("condition", picture) for picture in condition_pictures(batch, tuple(images.shape[-2:]))]
    write_page(
        where / REPORT,
        title=_title(cfg, parts),
        found=found.as_file(),
        command=f"python evaluate.py card={where / RESULTS}",
        samples=Pictures(images, texts, beside),
        neighbours=near,
    )


def _title(cfg: DictConfig, parts: Parts) -> str:
    data = "" if parts.data is None else f" {parts.data.source.name}"
    return f"{parts.subject.name} on {cfg.num_images}{data} samples"


def _show(cfg: DictConfig, parts: Parts, found: Evaluation, console: Console) -> None:
    spread = (found.repeats or {}).get("sd")
    console.print(report.results_table(found.results, title=_title(cfg, parts), spread=spread))
    if found.controls:
        title = "controls: the same of images that the model did not make"
        console.print(report.results_table(found.controls, title=title))
    if parts.subject.stage_one is not None:
        console.print(channels_table(found.results["latents"]["channels"]))
