"""What a training is, in a dozen lines at its start."""

from __future__ import annotations

import textwrap

import pytorch_lightning as pl
from omegaconf import DictConfig
from torch import nn

from latentdiff.data.datamodule import DataModule

WIDTH, COLUMN = 80, 15
MUCH = 0.2
"""Share of the samples that is much for validation."""
COPIES = ("ema", "power_ema")
"""Parts of a module that are averages of others."""


def summary(
    cfg: DictConfig, *, module: pl.LightningModule, data: DataModule, trainer: pl.Trainer, first_stage: object = None
) -> str:
    """The lines. ``data`` is set up, ``module`` built."""
    source, each = data.source.name, cfg.global_batch // trainer.world_size
    device = f"{trainer.strategy.root_device.type}, {trainer.precision}"
    samples = "drawn with replacement" if data.resampled is not None else f"{len(data.train_set):,} training"
    rows = {
        "experiment": f"{cfg.experiment} ({module.kind})",
        "data": f"{source}: {samples}, {len(data.val_set):,} validation images at {cfg.data.size} px",
        "note": held_back(data),
        "first stage": first_stage,
        "latents": " x ".join(str(side) for side in _latent(module, cfg.data.size)),
        "parameters": parameters(module),
        "batches": f"{cfg.max_batches:,} of {cfg.global_batch} images, {each} per process",
        "processes": f"{trainer.world_size} ({device})",
    }
    lines = []
    for name, value in rows.items():
        if value is not None:
            indent = {"initial_indent": f"{name:{COLUMN}}", "subsequent_indent": " " * COLUMN}
            lines += textwrap.wrap(str(value), WIDTH, **indent, break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines)


def held_back(data: DataModule) -> str | None:
    """What is said where much of a small set is held back from training because no ``data.val`` is named."""
    held, rest = len(data.val_set), len(data.train_set)
    if getattr(data.source, "val", "") is not None or held <= MUCH * (held + rest):
        return None
    return (
        f"{held} of {held + rest} samples are held back for validation; data.val names others, "
        "data.module.source.held_back their share"
    )


def parts(module: nn.Module) -> dict[str, nn.Module]:
    """The networks of a training by name, averages left out."""
    children = {name: child for name, child in module.named_children() if name not in COPIES}
    grouped = children.pop("model", None)
    named = dict(grouped.items()) if isinstance(grouped, nn.ModuleDict) else {"model": grouped}
    named = {**named, **children}
    return {name: part for name, part in named.items() if part is not None and any(True for _ in part.parameters())}


def parameters(module: nn.Module) -> str:
    """How many of each part, the frozen ones last."""
    found = []
    for name, part in parts(module).items():
        for frozen in (False, True):
            count = sum(p.numel() for p in part.parameters() if p.requires_grad is not frozen)
            if count:
                found.append((frozen, f"{name} {in_short(count)}{' frozen' if frozen else ''}"))
    return ", ".join(text for _, text in sorted(found, key=lambda one: one[0]))


def in_short(count: float) -> str:
    """``12.3 M`` for 12,345,678."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _latent(module: pl.LightningModule, size: int) -> tuple[int, int, int]:
    side = size // module.latent["factor"]
    return module.latent["channels"], side, side
