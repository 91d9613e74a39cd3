"""What an evaluation is of: a checkpoint, the data and the metrics that fit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from latentdiff.app.generate import data_of, load_generator
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_codec
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.data.datamodule import DataModule
from latentdiff.evaluation.stage_one import MeasuredReconstruction
from latentdiff.generation.pipeline import Reconstruction
from latentdiff.metrics.caption_accuracy import CaptionAccuracy
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.paired import Fidelity, Paired
from latentdiff.types import Batch, Metric

RESULTS_OF_STAGE_ONE = ("patch_pca", "latents")


@dataclass(frozen=True)
class Subject:
    """Images from conditions, and the checkpoint behind them."""

    generate: Callable[[Batch, list[int]], Tensor]
    reconstruct: Reconstruction | MeasuredReconstruction
    """Stage one alone."""
    data: DictConfig
    config: DictConfig
    """The checkpoint's own."""
    path: Path
    reads_captions: bool = False
    reads_labels: bool = False

    @property
    def stage_one(self) -> MeasuredReconstruction | None:
        return self.generate if isinstance(self.generate, MeasuredReconstruction) else None


@runtime_checkable
class ChecksSamples(Protocol):
    """A metric that can say, before any work, that samples lack what it reads of them."""

    def check(self, batch: Batch) -> None: ...


def load_subject(cfg: DictConfig, device: torch.device, precision: torch.dtype | None) -> Subject:
    """Of evaluate.py's configuration. Raises InputError for a checkpoint that cannot be used."""
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    if store.read_manifest(path).kind == "autoencoder":
        reconstruct = MeasuredReconstruction(codec=load_codec(path).to(device), device=device)
        config = load_config(path / store.CONFIG)
        return Subject(reconstruct, reconstruct, data_of(cfg, config), config, path)
    made = load_generator(cfg, path, device, precision)
    reads = {"reads_captions": made.reads_captions, "reads_labels": made.reads_labels}
    return Subject(made.pipeline, made.reconstruct, data_of(cfg, made.config), made.config, path, **reads)


def data_for(cfg: DictConfig, subject: Subject) -> DataModule:
    """The prepared data, with what the model's condition is made from.

    The checkpoint's own data say so themselves; other data are given the makers of its conditions and its classes.
    """
    if subject.data.get("module") is None:
        raise InputError(
            "data: an imported model brings none; choose some, e.g. data=webdataset data.train=PATH data.size=512"
        )
    data: DataModule = build(subject.data.module)
    if data.readers is not None:
        raise InputError(
            "data: cached latents have no images to compare with; name those they were made of, e.g. data=webdataset "
            "data.train=PATH data.size=64"
        )
    conditioner = OmegaConf.select(subject.config, "conditioner")
    if cfg.get("data") is not None and conditioner is not None:
        makers = conditioner.get("conditions")
        data.conditions = None if makers is None else build(makers)
        data.classes = conditioner.get("classes")
    data.require_captions |= subject.reads_captions
    data.require_labels |= subject.reads_labels
    data.prepare_data()
    return data


def metrics_for(cfg: DictConfig, subject: Subject) -> dict[str, Metric]:
    """Those asked for, else those that the checkpoint's experiment names, else those of the data.

    Of the data's own, caption accuracy is for models that read captions.
    """
    chosen = cfg.metrics or subject.config.get("metrics")
    metrics = {name: build(node) for name, node in (chosen or subject.data.metrics).items()}
    if subject.stage_one is not None:
        return {n: m.of_reconstructions() if isinstance(m, FrechetDistance) else m for n, m in metrics.items()}
    for name, metric in metrics.items():
        if isinstance(metric, (Paired, Fidelity)):
            raise InputError(
                f"metrics: '{name}' compares an image with its own original, which a sample of stage two does not "
                "have; evaluate a stage-one checkpoint with it, or choose another metric"
            )
    if chosen or subject.reads_captions:
        return metrics
    return {name: metric for name, metric in metrics.items() if not isinstance(metric, CaptionAccuracy)}


def check_request(count: int, data: DataModule, metrics: dict[str, Metric], subject: Subject) -> None:
    """Raises InputError for what would be found out after the work."""
    available = len(data.val_set)
    if count > available:
        raise InputError(f"num_images: {count} are wanted, but there are {available} validation samples")
    if count < 2 and any(isinstance(metric, FrechetDistance) for metric in metrics.values()):
        raise InputError(f"num_images: a Fréchet distance needs at least 2 images, got {count}")
    checking = {name: metric for name, metric in metrics.items() if isinstance(metric, ChecksSamples)}
    if checking:
        first = data.preview(1)
    for name, metric in checking.items():
        try:
            metric.check(first)
        except InputError as error:
            raise InputError(f"metrics: '{name}': {error}") from error
    if subject.stage_one is None:
        return
    known = isinstance(metrics.get("reconstruction"), Fidelity | None)
    if taken := [name for name in metrics if name in RESULTS_OF_STAGE_ONE or (name == "reconstruction" and not known)]:
        raise InputError(f"metrics: '{taken[0]}' is the name of a result that every first stage has; choose another")
    if data.image_size % (factor := subject.stage_one.codec.factor):
        raise InputError(f"data.size: {data.image_size} is not divisible by the autoencoder's factor {factor}")
