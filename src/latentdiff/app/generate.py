"""A stage-two checkpoint ready to generate as a program is configured."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from omegaconf import DictConfig, OmegaConf

from latentdiff.checkpoint.guides import CheckpointAutoguidance, CheckpointClassifierGuidance
from latentdiff.checkpoint.models import DiffusionModel, load_diffusion
from latentdiff.checkpoint.store import Part
from latentdiff.conditioning.compose import Composite
from latentdiff.config import allowlist
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import NODE_KEYS, build
from latentdiff.config.validate import validate
from latentdiff.diffusion.guidance import ClassifierGuidance, check_guidance
from latentdiff.generation.pipeline import LatentPipeline, Reconstruction
from latentdiff.nn.precision import cast_matmul_weights


@dataclass(frozen=True)
class Generator:
    """A pipeline, the checkpoint's own configuration, and its codec alone."""

    pipeline: LatentPipeline
    config: DictConfig
    reconstruct: Reconstruction

    @property
    def reads_captions(self) -> bool:
        return self.config.conditioner.get("reads_captions", False)

    @property
    def reads_labels(self) -> bool:
        steered = isinstance(self.pipeline.guidance, ClassifierGuidance)
        return steered or self.config.conditioner.get("reads_labels", False)


def load_generator(
    cfg: DictConfig, path: Path, device: torch.device, precision: torch.dtype | None, *, weights: Part = "ema"
) -> Generator:
    """Raises InputError for a checkpoint that cannot be used, and for sampler or guidance that do not fit it.

    ``weights`` "model": those that were trained, not their average.
    """
    model = load_diffusion(path, first_stage=cfg.first_stage.checkpoint, weights=weights)
    return generator_of(model, cfg, device, precision)


def generator_of(
    model: DiffusionModel, cfg: DictConfig, device: torch.device, precision: torch.dtype | None
) -> Generator:
    """``load_generator`` of a loaded model; again for one that has a generator of the same precision already."""
    sampler = overlaid(cfg.sampler, model.config.sampler, "solver")
    node = overlaid(cfg.guidance, model.config.guidance, "_target_")
    _check(sampler, node)
    guidance = build(node)
    check_guidance(guidance, model.conditioner)
    if precision is not None and not cfg.get("bound"):  # the bound is computed in float32
        cast_matmul_weights(model.denoiser.backbone, precision)
    pipeline = LatentPipeline(
        denoiser=model.denoiser.to(device),
        conditioner=model.conditioner.to(device),
        codec=model.codec.to(device),
        sampler=build(sampler.solver),
        grid=build(sampler.grid),
        steps=sampler.steps,
        guidance=guidance,
        image_size=data_of(cfg, model.config).size,
        precision=precision,
    )
    if isinstance(guidance, CheckpointAutoguidance | CheckpointClassifierGuidance):
        guidance.check_fits(model, pipeline.latent_shape[1:])
    return Generator(pipeline, model.config, Reconstruction(codec=model.codec, device=device))


def check_training_guidance(cfg: DictConfig) -> None:
    """Raises InputError for guidance that train.py cannot draw its sample grids with."""
    if "checkpoint" in cfg.guidance.keys():  # noqa: SIM118  where it is missing still, "in" says no
        raise InputError(
            f"guidance: {cfg.guidance._target_.rpartition('.')[2]} reads a second checkpoint and is for sample.py and "
            "evaluate.py; choose another for training's sample grids, e.g. guidance=classifier_free"
        )
    check_guidance(build(cfg.guidance), _dropping(cfg.conditioner.module))


def _dropping(node: DictConfig) -> SimpleNamespace:
    """``drop`` and ``parts`` that the conditioner of a node will have, without building it: it may load weights."""
    if allowlist.resolve(node._target_) is Composite:
        each = {name: _dropping(part).drop for name, part in node.parts.items()}
        return SimpleNamespace(drop=max(each.values()), parts=[name for name, drop in each.items() if drop > 0])
    kind = allowlist.resolve(node._target_)
    default = inspect.signature(kind).parameters.get("drop")
    return SimpleNamespace(drop=node.get("drop", 0.0 if default is None else default.default), parts=kind.parts)


def overlaid(given: DictConfig, own: DictConfig, marker: str) -> DictConfig:
    """The program's own node where it is whole (it has ``marker``), else the checkpoint's with the values given."""
    if marker in given:
        return given
    values = {key: value for key, value in given.items() if value is not None}
    for key in values:
        if key not in own:
            known = ", ".join(_settings(own))
            raise InputError(f"the checkpoint's configuration has no '{key}' here; it has {known or 'no settings'}")
    return OmegaConf.merge(own, values)


def _settings(node: DictConfig, prefix: str = "") -> list[str]:
    """Dotted keys of a node's plain values."""
    found = []
    for key, value in node.items():
        if key not in NODE_KEYS:
            found += _settings(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [f"{prefix}{key}"]
    return found


def data_of(cfg: DictConfig, config: DictConfig) -> DictConfig:
    """The program's data where it has some, else the checkpoint's."""
    return config.data if cfg.get("data") is None else cfg.data


def _check(sampler: DictConfig, guidance: DictConfig) -> None:
    """What the command line put over the checkpoint's values has been held against no signature yet."""
    faults = validate(OmegaConf.create({"sampler": sampler, "guidance": guidance}))
    if faults:
        raise InputError("\n".join(map(str, faults)))
    if not isinstance(sampler.steps, int) or sampler.steps < 1:
        raise InputError(f"sampler.steps: expected a whole number of at least 1, got {sampler.steps!r}")
    if not math.isfinite(scale := guidance.get("scale", 0.0)):
        raise InputError(f"guidance.scale: expected a finite number, got {scale}")
