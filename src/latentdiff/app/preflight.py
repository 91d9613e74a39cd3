"""What train.py refuses before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from latentdiff.app.build import world_size
from latentdiff.checkpoint import store
from latentdiff.config import allowlist
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build

POSITIVE = ("max_batches", "global_batch", "validate_every", "data.size")

ARCHITECTURE = ("autoencoder", "backbone", "diffusion", "conditioner", "latent")
"""Parts of the configuration that a resumed run must share with its checkpoint."""


def check_numbers(cfg: DictConfig) -> None:
    """Counts are at least 1, and every process gets the same share of a batch."""
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{key}: expected a whole number of at least 1, got {value!r}")
    processes = world_size(cfg)
    if cfg.global_batch % processes:
        near = max(processes, round(cfg.global_batch / processes) * processes)
        raise InputError(
            f"global_batch: {cfg.global_batch} cannot be split evenly over {processes} processes; {near} can"
        )


def check_latents(cfg: DictConfig, latent: dict[str, int]) -> None:
    """The image size fits the autoencoder and the backbone; puts the shape of the latents into the configuration."""
    factor, by = latent["factor"], "the autoencoder's factor"
    if cfg.first_stage is not None:
        cfg.latent.channels, cfg.latent.factor = latent["channels"], latent["factor"]
        with torch.device("meta"):
            backbone = build(cfg.backbone)
        below, reads = getattr(backbone, "factor", 1), getattr(backbone, "in_channels", latent["channels"])
        if reads < latent["channels"]:
            raise InputError(
                f"backbone.in_channels: the backbone reads {reads} channels, the first stage's latents have "
                f"{latent['channels']}; leave it at ${{latent.channels}}, or name another first stage"
            )
        factor, by = factor * below, f"{factor} (the autoencoder's factor) x {below} (the backbone's)"
    size = cfg.data.size
    if size % factor:
        near = max(factor, round(size / factor) * factor)
        raise InputError(f"data.size: {size} is not divisible by {by} = {factor}; {near} is")


def check_optimizers(cfg: DictConfig) -> None:
    """The optimisers take their settings: torch's annotations say little of what they accept."""
    for key in ("optim.optimizer", "adversarial.optimizer"):
        node = OmegaConf.select(cfg, key)
        if node is not None:
            if key == "adversarial.optimizer" and node._target_.endswith(".Muon") and cfg.adversarial.discriminator:
                raise InputError(
                    "adversarial.optimizer: expected another optimiser than Muon, with which the discriminator tells "
                    "every image apart within 100 batches; choose optim=adamw, adversarial=patch_tiny, or name one: "
                    "adversarial.optimizer._target_=torch.optim.AdamW"
                )
            try:
                build(node)([("weight", torch.nn.Parameter(torch.zeros(1)))])
            except (ValueError, TypeError, RuntimeError) as error:
                settings = ", ".join(f"{k}={v!r}" for k, v in node.items() if not k.startswith("_"))
                raise InputError(f"{key}: {node._target_} refuses {settings} ({error})") from error


def check_sampling(cfg: DictConfig) -> None:
    """Path and parameterization go together, and the sampler's grid fits the path."""
    node = OmegaConf.to_container(cfg.task.denoiser, resolve=True)
    try:
        denoiser = build({**node, "backbone": {"_target_": "torch.nn.Identity"}})
        build(cfg.sampler.grid)(denoiser.path, cfg.sampler.steps, denoiser.t_max)
    except InputError as error:
        raise InputError(f"sampler or diffusion: {error}") from error


def check_resume(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuses a checkpoint of another kind or architecture, naming each key that differs, and a damaged one."""
    store.read_manifest(checkpoint, expect_kind=allowlist.resolve(cfg.task._target_).kind)
    store.verify(checkpoint)
    saved = OmegaConf.create(store.load_config(checkpoint))
    differing = [
        f"{key}: {old!r} in the checkpoint, {new!r} now"
        for part in ARCHITECTURE
        for key, old, new in _differences(saved.get(part), cfg.get(part), part)
    ]
    if differing:
        raise InputError(
            f"'{checkpoint}' cannot be resumed with another architecture; start in a new run_dir, or set back\n  "
            + "\n  ".join(differing)
        )


def _differences(old: object, new: object, key: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, DictConfig) and isinstance(new, DictConfig):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}")
    elif old != new:
        yield key, old, new
