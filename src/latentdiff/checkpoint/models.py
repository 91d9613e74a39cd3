"""Models from checkpoints: built from the configuration inside, with the averaged weights, frozen.

A first stage may also be an autoencoder that another program wrote, see ``foreign``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import reading as foreign
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.places import check_text_encoder, first_stage_in, moved
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.classifier import NoisyClassifier

EMA_PREFIX = "ema.model."
_TRAINED = {"diffusion": "model.", "autoencoder": "autoencoder."}
"""Begins the names of the weights that were trained, by the kind of the checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a model came from, and what it says of itself."""

    config: DictConfig
    manifest: store.Manifest
    path: Path


@dataclass(frozen=True)
class DenoiserModel(Checkpoint):
    """A stage-two checkpoint without its first stage: what autoguidance needs of its guide."""

    denoiser: Denoiser
    conditioner: nn.Module


@dataclass(frozen=True)
class DiffusionModel(DenoiserModel):
    """What generation needs of a stage-two checkpoint."""

    codec: LatentCodec


@dataclass(frozen=True)
class ClassifierModel(Checkpoint):
    """What classifier guidance needs of a noisy classifier's checkpoint."""

    classifier: NoisyClassifier


def load_codec(path: str | Path, *, statistics: Statistics | None = None, weights: store.Part = "ema") -> LatentCodec:
    """The codec of a stage-one checkpoint of ours, or of an autoencoder that another program wrote.

    A checkpoint of ours carries its latent statistics. ``statistics`` are for others: they take the place of the
    file's own, and are needed where it has none. Of ours the averaged ``weights``, or those that were trained
    ("model"). Raises InputError where ``path`` is no first stage, or a damaged one.
    """
    if foreign.recognises(path):
        found = foreign.read(path)
        known = statistics or found.chosen_statistics()
        return LatentCodec(autoencoder=found.autoencoder(), mean=known.mean, std=known.std)
    path = store.resolve(first_stage_in(path), prefer=("last", "best"))
    store.read_manifest(path, expect_kind="autoencoder")
    store.verify(path)
    autoencoder = build(load_config(path / store.CONFIG).autoencoder)
    _load(autoencoder, *_weights(path, "autoencoder", weights), path)
    own = store.load_weights(path, "model")
    return LatentCodec(autoencoder=autoencoder, mean=own["latent_mean"], std=own["latent_std"])


def first_stage_record(path: str | Path, statistics: Statistics | None = None) -> dict:
    """What a stage-two checkpoint keeps of its first stage: path and identity of the weights, and of a foreign one the
    statistics it was used with."""
    where, digest = _identified(Path(path))
    record: dict = {"path": str(where.resolve()), "hash": digest}
    if foreign.recognises(where):
        known = statistics or foreign.read(where).chosen_statistics()
        record |= {"mean": list(known.mean), "std": list(known.std)}
    return record


def recorded_statistics(record: dict) -> Statistics | None:
    """The statistics in a ``first_stage_record``; None for a first stage of ours, which carries its own."""
    return Statistics(tuple(record["mean"]), tuple(record["std"])) if "mean" in record else None


def load_diffusion(path: str | Path, *, first_stage: str | None = None, weights: store.Part = "ema") -> DiffusionModel:
    """A stage-two checkpoint with its first stage, from where it was in training or from ``first_stage``.

    ``weights`` "model": of the denoiser and the conditioner those that were trained, not their average. Raises
    InputError where either is missing or damaged, or where the first stage is another than in training.
    """
    path, manifest = _opened(path, "diffusion")
    where = first_stage_place(path, manifest, first_stage)
    codec = load_codec(where, statistics=recorded_statistics(manifest.first_stage))
    return DiffusionModel(codec=codec, **vars(_denoiser(path, manifest, weights)))


def first_stage_place(path: Path, manifest: store.Manifest, given: str | None = None) -> Path:
    """Of the first stage that the checkpoint at ``path`` was trained on: where it was then, or where it is ``given``.

    Raises InputError where it is missing, or another than in training.
    """
    where = Path(given or moved(manifest.first_stage["path"], manifest, path))
    if not where.exists():
        raise InputError(
            f"the first stage of '{path}' is not at '{where}'; name its present place with first_stage.checkpoint=PATH "
            "(latentdiff export: --first-stage PATH)"
        )
    where, digest = _identified(where)
    if digest != manifest.first_stage["hash"]:
        raise InputError(
            f"'{path}' was trained on the first stage {manifest.first_stage['hash'][:12]}, '{where}' is {digest[:12]}; "
            "name the right one with first_stage.checkpoint=PATH"
        )
    return where


def load_denoiser(path: str | Path) -> DenoiserModel:
    """A stage-two checkpoint without its first stage, which need not be there.

    Raises InputError where it is missing, damaged or of another kind.
    """
    return _denoiser(*_opened(path, "diffusion"))


def load_classifier(path: str | Path) -> ClassifierModel:
    """The averaged classifier of an ``experiment=classifier`` checkpoint.

    Raises InputError where it is missing, damaged or of another kind.
    """
    path, manifest = _opened(path, "classifier")
    config = load_config(path / store.CONFIG)
    classifier = build(config.task.classifier)
    _load(classifier, store.load_weights(path, "ema"), EMA_PREFIX, path)
    return ClassifierModel(classifier=classifier, config=config, manifest=manifest, path=path)


def _opened(path: str | Path, kind: str) -> tuple[Path, store.Manifest]:
    """A checkpoint that was trained on a first stage, every file of it verified."""
    path = store.resolve(path, prefer=("last", "best"))
    manifest = store.read_manifest(path, expect_kind=kind)
    store.verify(path)
    if manifest.first_stage is None:
        raise InputError(f"'{path}' does not say which first stage it was trained on; it cannot be used")
    return path, manifest


def _denoiser(path: Path, manifest: store.Manifest, weights: store.Part = "ema") -> DenoiserModel:
    config = load_config(path / store.CONFIG)
    conditioner = moved(OmegaConf.to_container(config.task.conditioner), manifest, path)
    check_text_encoder(conditioner, manifest, path)
    model = nn.ModuleDict({"denoiser": build(config.task.denoiser), "conditioner": build(conditioner)})
    _load(model, *_weights(path, "diffusion", weights), path)
    return DenoiserModel(
        denoiser=model["denoiser"], conditioner=model["conditioner"], config=config, manifest=manifest, path=path
    )


def _identified(path: Path) -> tuple[Path, str]:
    """A first stage's place in full, and its identity."""
    if foreign.recognises(path):
        return path, foreign.digest(path)
    path = store.resolve(first_stage_in(path), prefer=("last", "best"))
    return path, store.digest(path)


def _weights(path: Path, kind: str, part: store.Part) -> tuple[dict[str, Tensor], str]:
    """And what their names begin with. Raises InputError where the checkpoint holds the average alone."""
    prefix, found = EMA_PREFIX if part == "ema" else _TRAINED[kind], store.load_weights(path, part)
    if part == "model" and not any(name.startswith(prefix) for name in found):
        raise InputError(f"weights: '{path}' holds one set of weights alone; leave weights=ema")
    return found, prefix


def _load(module: nn.Module, weights: dict[str, Tensor], prefix: str, path: Path) -> None:
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise InputError(f"the weights in '{path}' do not fit its own configuration: {error}") from error
    module.requires_grad_(False).eval()
