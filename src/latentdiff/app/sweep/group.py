"""The group under which the runs of a sweep stand together in W&B: the name of the sweep's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

KEY = "logger.wandb.group"


def takes_group(cfg: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether runs of this configuration log to W&B, and their ``overrides`` name no group."""
    logger = OmegaConf.select(cfg, KEY.rpartition(".")[0])
    return logger is not None and "group" in logger and not any(line.startswith(f"{KEY}=") for line in overrides)


def group_override(folder: Path) -> str:
    return f"{KEY}={QuotedString(folder.resolve().name, Quote.single).with_quotes()}"
