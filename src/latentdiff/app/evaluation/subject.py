"""What an evaluation is of: a checkpoint, a pipeline or images made elsewhere; the data and the metrics that fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from omegaconf import DictConfig, OmegaConf

from latentdiff.app.evaluation.model_identity import model_identity
from latentdiff.app.generate import Generator, data_of, load_generator
from latentdiff.app.ranks import Ranks
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_codec
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.data.datamodule import DataModule
from latentdiff.evaluation.card import Described
from latentdiff.evaluation.engine import Generate, Samples
from latentdiff.evaluation.made_conditions import MadeConditions
from latentdiff.evaluation.prompts import PromptFile
from latentdiff.evaluation.stage_one import MeasuredReconstruction
from latentdiff.generation.pipeline import Reconstruction
from latentdiff.metrics.caption_accuracy import CaptionAccuracy
from latentdiff.metrics.on_features import OnFeatures, check_distinct
from latentdiff.metrics.paired import Fidelity, check_unpaired
from latentdiff.types import Batch, Metric

RESULTS_OF_STAGE_ONE = ("reconstruction", "latents")


class Source(Generate, Described, Protocol):
    """What makes images, and says how."""


@dataclass(frozen=True)
class Subject:
    """Images from conditions, and what is behind them."""

    generate: Source
    identity: Mapping[str, object]
    """Whose numbers these are, for the protocol card."""
    name: str
    """For the title of a table."""
    data: DictConfig | None
    """Node of the data whose conditions it is given and whose images it is compared with; None: there are none."""
    config: DictConfig
    """The checkpoint's own; empty where there is none."""
    path: Path | None = None
    """Of the checkpoint."""
    reconstruct: Reconstruction | MeasuredReconstruction | None = None
    """Stage one alone, of a checkpoint."""
    samples: Samples | None = None
    """What images are made for, in place of the data's validation samples; ``len`` says how many there are."""
    given: tuple[int, int] | None = None
    """Height and width of images that were made elsewhere; None: those of the data."""
    container: str = "memory"
    """Of images that were made elsewhere, the format of their files."""
    reads_captions: bool = False
    reads_labels: bool = False

    @property
    def stage_one(self) -> MeasuredReconstruction | None:
        return self.generate if isinstance(self.generate, MeasuredReconstruction) else None


@runtime_checkable
class ChecksSamples(Protocol):
    """A metric that can say, before any work, that samples lack what it reads of them."""

    def check(self, batch: Batch) -> None: ...


def load_subject(cfg: DictConfig, ranks: Ranks) -> Subject:
    """The checkpoint of evaluate.py's configuration. Raises InputError for one that cannot be used."""
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    if store.read_manifest(path).kind == "autoencoder":
        if cfg.prompts is not None:
            raise InputError("prompts: a first stage reads no captions; leave it out")
        for group in ("sampler", "guidance"):
            if chosen := [key for key, value in cfg[group].items() if value is not None]:
                raise InputError(f"{group}.{chosen[0]}: a first stage samples nothing; leave {group} out")
        if cfg.conditions == "made":
            raise InputError("conditions: a first stage reads images; leave it out")
        config = load_config(path / store.CONFIG)
        codec = load_codec(path, weights=cfg.weights).to(ranks.device)
        reconstruct = MeasuredReconstruction(codec=codec, device=ranks.device)
        return Subject(
            generate=reconstruct,
            identity=model_identity(path, config, cfg.weights),
            name=str(path),
            data=data_of(cfg, config),
            config=config,
            path=path,
            reconstruct=reconstruct,
        )
    made = load_generator(cfg, path, ranks.device, ranks.precision, weights=cfg.weights)
    return Subject(
        generate=made.pipeline,
        identity=model_identity(path, made.config, cfg.weights),
        name=str(path),
        data=data_of(cfg, made.config),
        config=made.config,
        path=path,
        reconstruct=made.reconstruct,
        samples=_samples(cfg, made),
        reads_captions=made.reads_captions,
        reads_labels=made.reads_labels,
    )


def _samples(cfg: DictConfig, made: Generator) -> Samples | None:
    """What takes the place of the data's samples. Raises InputError for a model that reads something else."""
    if cfg.conditions == "made":
        if cfg.prompts is not None:
            raise InputError("conditions=made and prompts: images are made for one of the two; leave out the other")
        return made_conditions(made)
    return None if cfg.prompts is None else _prompts(cfg.prompts, made.config)


def made_conditions(made: Generator) -> MadeConditions:
    conditioner = made.config.conditioner
    read = ["captions"] if made.reads_captions else list(conditioner.get("conditions") or {})
    if read:
        raise InputError(
            f"conditions=made: the model reads {', '.join(read)}, which cannot be made up; use conditions=data"
        )
    classes = conditioner.get("classes") if made.reads_labels else None
    if made.reads_labels and classes is None:
        raise InputError("conditions=made: the model does not say how many classes there are; use conditions=data")
    return MadeConditions(classes=classes)


def _prompts(path: str, config: DictConfig) -> PromptFile:
    """Raises InputError for a model that reads something else."""
    conditioner = config.conditioner
    if not conditioner.get("reads_captions", False):
        raise InputError("prompts: the model reads no captions; leave it out")
    if makers := conditioner.get("conditions"):
        raise InputError(f"prompts: the model also reads {', '.join(makers)}, which a text file does not give")
    if conditioner.get("reads_labels", False):
        raise InputError("prompts: the model also reads labels, which a text file does not give")
    return PromptFile(path)


def data_for(cfg: DictConfig, subject: Subject, ranks: Ranks) -> DataModule | None:
    """The prepared data, with what the model's condition is made from. Collective: rank 0 prepares them first.

    The checkpoint's own data say so themselves; other data are given the makers of its conditions and its classes.
    """
    if subject.data is None:
        return None
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
        makers = _makers(cfg, subject)
        data.conditions = None if makers is None else build(makers)
        data.classes = conditioner.get("classes")
    if subject.samples is None:
        data.require_captions |= subject.reads_captions
        data.require_labels |= subject.reads_labels
    if ranks.first:
        data.prepare_data()
    ranks.barrier()
    if not ranks.first:
        data.prepare_data()
    return data


def _makers(cfg: DictConfig, subject: Subject) -> DictConfig | None:
    """Node of what makes conditions from the data's samples: the model's, else the data's own."""
    conditioner = OmegaConf.select(subject.config, "conditioner")
    if cfg.get("data") is None or conditioner is None:
        return subject.data.module.get("conditions")
    return conditioner.get("conditions")


def conditions_record(cfg: DictConfig, subject: Subject, data: DataModule) -> dict[str, object]:
    """How the data's samples become conditions, for the protocol card."""
    makers = _makers(cfg, subject)
    names = data.class_names
    labels = {"classes": data.classes, "field": data.label_field, "names": None if names is None else list(names)}
    made = None if makers is None else OmegaConf.to_container(makers, resolve=True)
    return {"labels": labels, "made_by": made}


def samples_for(subject: Subject, data: DataModule | None) -> Samples:
    """What the images are made for."""
    if subject.samples is not None:
        return subject.samples
    if data is None:
        raise InputError("data: there is nothing to make images for; choose data, or give prompts=FILE")
    return data.ranges_of(data.val_set, with_conditions=True)


def metrics_for(cfg: DictConfig, subject: Subject) -> dict[str, Metric]:
    """Those asked for, else those that the checkpoint's experiment names, else those of the data.

    Of the data's own, caption accuracy is for models that read captions.
    """
    chosen = cfg.metrics or subject.config.get("metrics")
    own = {} if subject.data is None else subject.data.get("metrics") or {}
    try:
        metrics = {name: build(node) for name, node in (chosen or own).items()}
    except InputError as error:
        if cfg.metrics:
            raise
        raise InputError(f"metrics: the checkpoint's own: {error}; or choose others, e.g. metrics=small") from error
    if not metrics and subject.stage_one is None:
        raise InputError("metrics: there is nothing to measure; choose some, e.g. metrics=small")
    if subject.stage_one is not None:
        return {n: m.of_reconstructions() if isinstance(m, OnFeatures) else m for n, m in metrics.items()}
    check_unpaired(metrics)
    if chosen or subject.reads_captions:
        return metrics
    return {name: metric for name, metric in metrics.items() if not isinstance(metric, CaptionAccuracy)}


def check_request(cfg: DictConfig, subject: Subject, samples: Samples, metrics: Mapping[str, Metric]) -> None:
    """Raises InputError for what would be found out after the work."""
    count = cfg.num_images
    if count < 1:
        raise InputError(f"num_images: expected at least 1, got {count}")
    if isinstance(samples, Sized) and count > len(samples):
        raise InputError(
            f"num_images: {count} are wanted, but there are {len(samples)} samples; lower it to that, or give more"
        )
    first = samples(range(1))
    for name, metric in metrics.items():
        try:
            if isinstance(metric, OnFeatures):
                metric.check_count(count)
            if isinstance(metric, ChecksSamples):
                metric.check(first)
        except InputError as error:
            raise InputError(f"metrics: '{name}': {error}") from error
    check_distinct(metrics, count)
    if cfg.bound and subject.stage_one is not None:
        raise InputError("bound: the variational bound is stage two's; leave it out for a first stage")
    if cfg.bound and first.image is None:
        raise InputError("bound: it is one on images' latents, and the samples have no images; leave it out")
    if subject.stage_one is None:
        return
    if taken := [name for name, metric in metrics.items() if _named_as_standard(name, metric)]:
        raise InputError(f"metrics: '{taken[0]}' is the name of a result that every first stage has; choose another")
    factor, sides = subject.stage_one.codec.factor, first.image.shape[-2:]
    if any(side % factor for side in sides):
        raise InputError(f"data.size: {sides[0]} is not divisible by the autoencoder's factor {factor}")


def _named_as_standard(name: str, metric: Metric) -> bool:
    """PSNR and SSIM may be asked for by the name that they have anyway."""
    return name in RESULTS_OF_STAGE_ONE and not (name == "reconstruction" and isinstance(metric, Fidelity))
