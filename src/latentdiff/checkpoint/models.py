"""Models from checkpoints: built from the configuration inside, with the averaged weights, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor, nn

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.models.autoencoder.codec import LatentCodec

EMA_PREFIX = "ema.model."


@dataclass(frozen=True)
class DiffusionModel:
    """What generation needs of a stage-two checkpoint."""

    denoiser: Denoiser
    conditioner: nn.Module
    codec: LatentCodec
    config: DictConfig
    manifest: store.Manifest
    path: Path


def load_codec(path: str | Path) -> LatentCodec:
    """The codec of a stage-one checkpoint, with its latent statistics; InputError where it is not one."""
    path = store.resolve(path, prefer=("last", "best"))
    store.read_manifest(path, expect_kind="autoencoder")
    store.verify(path)
    autoencoder = build(load_config(path / store.CONFIG).autoencoder)
    _load(autoencoder, store.load_weights(path, "ema"), EMA_PREFIX, path)
    statistics = store.load_weights(path, "model")
    return LatentCodec(autoencoder=autoencoder, mean=statistics["latent_mean"], std=statistics["latent_std"])


def load_diffusion(path: str | Path, *, first_stage: str | None = None) -> DiffusionModel:
    """A stage-two checkpoint with its first stage, from where it was in training or from ``first_stage``.

    Raises InputError where either is missing or damaged, or where the first stage is another than in training.
    """
    path = store.resolve(path, prefer=("last", "best"))
    manifest = store.read_manifest(path, expect_kind="diffusion")
    store.verify(path)
    if manifest.first_stage is None:
        raise InputError(f"'{path}' does not say which first stage it was trained on; it cannot be used")
    where = Path(first_stage or manifest.first_stage["path"])
    if not where.exists():
        raise InputError(
            f"the first stage of '{path}' is not at '{where}'; name its present place with first_stage.checkpoint=PATH"
        )
    where = store.resolve(where, prefer=("last", "best"))
    if (digest := store.digest(where)) != manifest.first_stage["hash"]:
        raise InputError(
            f"'{path}' was trained on the first stage {manifest.first_stage['hash'][:12]}, '{where}' is {digest[:12]}; "
            "name the right one with first_stage.checkpoint=PATH"
        )
    config = load_config(path / store.CONFIG)
    model = nn.ModuleDict({"denoiser": build(config.task.denoiser), "conditioner": build(config.task.conditioner)})
    _load(model, store.load_weights(path, "ema"), EMA_PREFIX, path)
    return DiffusionModel(
        denoiser=model["denoiser"],
        conditioner=model["conditioner"],
        codec=load_codec(where),
        config=config,
        manifest=manifest,
        path=path,
    )


def _load(module: nn.Module, weights: dict[str, Tensor], prefix: str, path: Path) -> None:
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise InputError(f"the weights in '{path}' do not fit its own configuration: {error}") from error
    module.requires_grad_(False).eval()
