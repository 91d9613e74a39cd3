"""One evaluation: every image made once, on any number of processes, and all that is measured on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from latentdiff.app.evaluation.parts import controls_for, fitting_images
from latentdiff.app.evaluation.references import dataset_record, look, preparation
from latentdiff.app.evaluation.repeat import check_identity, check_protocol, config_record
from latentdiff.app.evaluation.subject import Subject, conditions_record, samples_for
from latentdiff.app.evaluation.work_files import FOLDER, take_up, tidy, watched
from latentdiff.app.ranks import Ranks
from latentdiff.config.errors import InputError
from latentdiff.data.datamodule import DataModule
from latentdiff.evaluation import card
from latentdiff.evaluation.bound import VariationalBound
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.controls import Control, applicable, control_folders, control_results, fill_controls
from latentdiff.evaluation.engine import Measure, Samples, Work, fill, measures_of, results
from latentdiff.evaluation.sample_files import NpzSamples, PngSamples, SampleFiles
from latentdiff.evaluation.stage_one import metrics_of_stage_one
from latentdiff.metrics.caption_accuracy import CaptionAccuracy
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.reference import Reference
from latentdiff.types import Metric

PICTURES = 32
"""First images that are kept for the grid and the report."""
_CONDITIONER = "conditioner"


@dataclass(frozen=True)
class Evaluation:
    """What results.json will hold, and the rows and first pictures of the model's images."""

    results: dict[str, dict]
    controls: dict[str, dict]
    card: dict[str, object]
    folder: ChunkFolder
    samples: Samples
    """What the images were made for."""
    repeats: dict[str, object] | None = None
    """See ``app.repeats``."""

    def as_file(self) -> dict[str, object]:
        """What results.json holds."""
        beside = {"controls": self.controls, "repeats": self.repeats}
        return {"results": self.results, **{key: value for key, value in beside.items() if value}, "card": self.card}


def measure(
    cfg: DictConfig,
    subject: Subject,
    data: DataModule | None,
    metrics: Mapping[str, Metric],
    references: Mapping[str, Reference],
    ranks: Ranks,
    where: Path,
    console: Console,
) -> Evaluation:
    """Makes what is still missing of the images and measures them. Collective; the same on every rank.

    The files of the work are in ``where/chunks``. Raises InputError where they belong to another protocol, and where
    more images are equal to another than ``max_duplicates`` allows.
    """
    began = time.perf_counter()
    plan = _planned(cfg, subject, data, metrics, ranks, where)
    if ranks.first:
        tidy(where)
    take_up(plan.chunks, _determining(cfg, subject, data, plan), ranks)
    _make(cfg, subject, plan, ranks, console)
    found = _found(cfg, subject, plan, references) if ranks.first else None
    results, controls, observed = ranks.broadcast(found)
    about = card.protocol_card(
        model=subject.identity,
        protocol=plan.protocol,
        references=references,
        observed=observed,
        config=config_record(cfg),
        world_size=ranks.count,
        device=ranks.device.type,
        wall_seconds=time.perf_counter() - began,
        controls={name: plan.controls[name] for name in controls},
    )
    return Evaluation(results, controls, about, plan.folder, plan.samples)


def protocol_of(
    cfg: DictConfig,
    subject: Subject,
    data: DataModule | None,
    metrics: Mapping[str, Metric],
    references: Mapping[str, Reference],
) -> dict[str, object]:
    """What the card's ``protocol`` will be, before any image is made."""
    whole = {**metrics, **_standard(cfg, subject, data)}
    work = Work(cfg.num_images, cfg.batch_size, cfg.seed)
    return card.with_references(_protocol(cfg, subject, data, whole, work), references)


@dataclass(frozen=True)
class _Plan:
    """What is made and measured. ``beside``: the metrics of the controls."""

    work: Work
    samples: Samples
    metrics: dict[str, Metric]
    controls: dict[str, Control]
    beside: dict[str, Metric]
    protocol: dict[str, object]
    chunks: Path

    @property
    def folder(self) -> ChunkFolder:
        """Of the model's images."""
        return ChunkFolder(self.chunks / "images", self.work.chunks)


def _planned(
    cfg: DictConfig,
    subject: Subject,
    data: DataModule | None,
    metrics: Mapping[str, Metric],
    ranks: Ranks,
    where: Path,
) -> _Plan:
    """Raises InputError where this is not what ``cfg.card`` tells of."""
    samples = samples_for(subject, data)
    work = Work(cfg.num_images, cfg.batch_size, cfg.seed, ranks.rank, ranks.count)
    controls = {} if data is None else controls_for(cfg, subject, data, samples, metrics)
    whole = {**metrics, **_standard(cfg, subject, data)}
    protocol = _protocol(cfg, subject, data, whole, work)
    if cfg.card is not None:
        check_protocol(cfg.card, protocol)
        check_identity(cfg.card, subject.identity)
    return _Plan(work, samples, whole, controls, _of_controls(cfg, metrics), protocol, where / FOLDER)


def _make(cfg: DictConfig, subject: Subject, plan: _Plan, ranks: Ranks, console: Console) -> None:
    """Makes and measures the images that are missing, of the model and of the controls, on all ranks."""
    work, files = plan.work, _files(cfg, subject, plan)
    beside = (plan.chunks, plan.controls, plan.beside, work)
    with watched([plan.folder, *control_folders(*beside)], "images", console, ranks):
        fill(
            plan.folder,
            work,
            subject.generate,
            plan.samples,
            _measures(subject, plan.metrics),
            pictures=max(PICTURES, cfg.neighbours),
            on_images=None if files is None else files.keep,
            progress=lambda _: ranks.check(),
        )
        fill_controls(*beside, progress=lambda _: ranks.check())
        ranks.barrier()


def _found(
    cfg: DictConfig, subject: Subject, plan: _Plan, references: Mapping[str, Reference]
) -> tuple[dict, dict, dict]:
    """Results, controls and what was observed, from the files of all ranks; joins the samples that are kept."""
    observed = card.observed(plan.folder, f"{_CONDITIONER}/{card.CUT}" if _cuts(subject) else None)
    _check_duplicates(observed["duplicates"], cfg)
    if (files := _files(cfg, subject, plan)) is not None:
        files.finish(plan.work.chunks)
    own = results(plan.folder, plan.metrics, references)
    controls = control_results(plan.chunks, plan.controls, plan.beside, plan.work, references)
    return *_arranged(own, controls, plan.beside), observed


def _of_controls(cfg: DictConfig, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """What controls are measured by; without ``controls`` nothing but the captions, whose number says nothing alone."""
    return {name: m for name, m in metrics.items() if cfg.controls or isinstance(m, CaptionAccuracy)}


def _standard(cfg: DictConfig, subject: Subject, data: DataModule | None) -> dict[str, Metric]:
    """What is measured of the model, beside what was chosen for its images."""
    if (model := subject.stage_one) is not None:
        return metrics_of_stage_one(model, (images.to(model.device) for images in fitting_images(data, cfg.batch_size)))
    if not cfg.bound:
        return {}
    pipeline = subject.generate
    parts = {"denoiser": pipeline.denoiser, "conditioner": pipeline.conditioner, "codec": pipeline.codec}
    return {"bound": VariationalBound(**parts, seed=cfg.seed, device=pipeline.device)}


def _protocol(
    cfg: DictConfig, subject: Subject, data: DataModule | None, metrics: Mapping[str, Metric], work: Work
) -> dict[str, object]:
    if isinstance(subject.samples, card.Described):
        conditions = subject.samples.describe()
    elif subject.samples is None:
        conditions = {**_of_data(data), **conditions_record(cfg, subject, data)}
    else:
        conditions = {}
    return card.protocol(
        generate=subject.generate,
        metrics=metrics,
        conditions=conditions,
        work=work,
        resolution=subject.given or (data.image_size, data.image_size),
        container=subject.container,
    )


def _of_data(data: DataModule) -> dict[str, object]:
    return {"dataset": dataset_record(data, "val", data.val_set), "images": preparation(data)}


def _determining(cfg: DictConfig, subject: Subject, data: DataModule | None, plan: _Plan) -> dict[str, object]:
    """All that decides what the files of the work hold: of metrics on features no measure, only what the network saw.

    The controls' images are the data's, whatever the model's are made for.
    """
    looks = {n: look(metric, metric.layers) for n, metric in plan.metrics.items() if isinstance(metric, OnFeatures)}
    controls = {
        name: {**control.describe(), "metrics": sorted(applicable(plan.beside, control))}
        for name, control in plan.controls.items()
    }
    return {
        "model": dict(subject.identity),
        "protocol": {**plan.protocol, "metrics": {**plan.protocol["metrics"], **looks}},
        "controls": {"images": controls, "data": _of_data(data) if controls else None},
        "save_samples": cfg.save_samples,
        "pictures": max(PICTURES, cfg.neighbours),
    }


def _cuts(subject: Subject) -> bool:
    return isinstance(getattr(subject.generate, "conditioner", None), card.CutsCaptions)


def _measures(subject: Subject, metrics: Mapping[str, Metric]) -> dict[str, Measure]:
    found = measures_of(metrics, subject.reconstruct if subject.samples is None else None)
    return found | ({_CONDITIONER: card.cut_captions(subject.generate.conditioner)} if _cuts(subject) else {})


def _files(cfg: DictConfig, subject: Subject, plan: _Plan) -> SampleFiles | None:
    if cfg.save_samples is None:
        return None
    if cfg.save_samples == "png":
        return PngSamples(plan.chunks.parent)
    return NpzSamples(plan.chunks.parent, plan.chunks / "samples", labels=subject.reads_labels)


def _check_duplicates(equal: int, cfg: DictConfig) -> None:
    share = equal / cfg.num_images
    if share > cfg.max_duplicates:
        raise InputError(
            f"max_duplicates: {equal} of {cfg.num_images} images are equal to another, a share of {share:.3g}, "
            f"{cfg.max_duplicates:g} is allowed: these numbers would not be those of {cfg.num_images} images, and "
            "results.json is not written. Look for equal seeds or conditions, or for a model that always gives the "
            "same; if they are right, the same command with max_duplicates=1 goes on with the images there are"
        )


def _arranged(own: dict[str, dict], controls: dict[str, dict], metrics: Mapping[str, Metric]) -> tuple[dict, dict]:
    """The results and the controls, the captions of reconstructions beside those of the samples."""
    rebuilt = controls.get("reconstructions", {})
    for name in [name for name in rebuilt if isinstance(metrics[name], CaptionAccuracy)]:
        own[name]["reconstructions"] = {key: value for key, value in rebuilt.pop(name).items() if key != "shuffled"}
    return own, {name: values for name, values in controls.items() if values}
