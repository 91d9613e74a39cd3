"""What an evaluation needs beside its subject: data, metrics and references loaded; the controls it stands beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from torch import Tensor

from latentdiff.app.evaluation.given import images_subject, pipeline_subject
from latentdiff.app.evaluation.references import references_for
from latentdiff.app.evaluation.subject import Subject, check_request, data_for, load_subject, metrics_for, samples_for
from latentdiff.app.ranks import Ranks
from latentdiff.data.datamodule import DataModule
from latentdiff.evaluation.baselines import BicubicEnlargement, LatentGaussian, LatentMoments, RealImages
from latentdiff.evaluation.controls import Control
from latentdiff.evaluation.engine import ComparesWithReal, Samples, index_chunks
from latentdiff.metrics.features.base import TEXT
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.reference import Reference
from latentdiff.types import Metric

FITTED_IMAGES = 1000
"""Training images that the patch PCA and the moments of the latents are fitted on."""


class Parts(NamedTuple):
    """What several evaluations of one checkpoint can share."""

    subject: Subject
    data: DataModule | None
    metrics: dict[str, Metric]
    references: dict[str, Reference]


def load_parts(cfg: DictConfig, ranks: Ranks, where: Path) -> Parts:
    """Of evaluate.py's configuration; what can be refused is refused before any image is made. Collective."""
    if cfg.images is not None:
        subject = images_subject(cfg, ranks)
    else:
        subject = load_subject(cfg, ranks) if cfg.pipeline is None else pipeline_subject(cfg, ranks)
    data = data_for(cfg, subject, ranks)
    metrics = metrics_for(cfg, subject)
    if data is not None and (subject.samples is None or (cfg.controls and subject.reconstruct is not None)):
        data.require_captions |= any(isinstance(m, OnFeatures) and TEXT in m.layers for m in metrics.values())
    check_request(cfg, subject, samples_for(subject, data), metrics)
    return Parts(subject, data, metrics, references_for(cfg, metrics, data, subject, ranks, where))


def fitting_images(data: DataModule, size: int) -> Iterator[Tensor]:
    """Training images in batches of ``size``, uint8 on the CPU, the same on every rank."""
    training = data.training_ranges(FITTED_IMAGES)
    return (batch.image for batch in training.in_order(index_chunks(len(training), size)))


def controls_for(
    cfg: DictConfig, subject: Subject, data: DataModule, samples: Samples, metrics: Mapping[str, Metric]
) -> dict[str, Control]:
    """Real scenes that only went through stage one, which no sample of stage two can pass, and what there is besides:

    small images enlarged; for distances to real images the training images, and latents drawn from a Gaussian.
    """
    count, reconstruct = cfg.num_images, subject.reconstruct
    if reconstruct is None or subject.stage_one is not None:
        return {}
    own = subject.samples is None
    real = samples if own else data.ranges_of(data.val_set)
    controls = {"reconstructions": Control(reconstruct, real, min(count, len(data.val_set)), conditioned=own)}
    if not cfg.controls:
        return controls
    if own and samples(range(1)).low_res is not None:
        controls["bicubic"] = Control(BicubicEnlargement(device=reconstruct.device), samples, count)
    if any(isinstance(metric, ComparesWithReal) and metric.needs_reference for metric in metrics.values()):
        codec, device = reconstruct.codec, reconstruct.device
        moments = LatentMoments.of(fitting_images(data, cfg.batch_size), codec, device)
        gaussian = LatentGaussian(codec=codec, moments=moments)
        controls["gaussian"] = Control(gaussian, samples, count, conditioned=False)
        training = data.training_ranges(count)
        controls["training_images"] = Control(RealImages(device=device), training, len(training), conditioned=False)
    return controls
