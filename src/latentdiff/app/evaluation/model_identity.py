"""Whose numbers an evaluation gives: for the protocol card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from latentdiff.app.run.cached_run import FROZEN, identity
from latentdiff.checkpoint import store
from latentdiff.checkpoint.places import moved
from latentdiff.config import allowlist
from latentdiff.evaluation.card import checkpoint_identity


def model_identity(path: Path, config: DictConfig, weights: str) -> dict[str, object]:
    """Of a checkpoint: its own configuration says how the average was made and which frozen text encoders it reads.

    Args:
        weights: "ema" or "model".
    """
    return checkpoint_identity(path, weights=weights, ema=_average(path, config), text_encoders=_encoders(path, config))


def _average(path: Path, config: DictConfig) -> Mapping[str, object]:
    extra, decay = store.read_manifest(path).extra, OmegaConf.select(config, "task.ema_decay")
    if "ema_length" in extra:
        return {"length": extra["ema_length"]}
    return {} if decay is None else {"decay": decay}


def _encoders(path: Path, config: DictConfig) -> list[dict]:
    """Settings of the encoders that the checkpoint does not hold, with the sha256 of files in place of their paths."""
    node = OmegaConf.select(config, "conditioner.module")
    if node is None:
        return []
    plain = moved(OmegaConf.to_container(node), store.read_manifest(path), path)
    return [identity(part) for part in plain.get("parts", {"": plain}).values() if _is_frozen(part)]


def _is_frozen(part: Mapping) -> bool:
    return allowlist.resolve(part["_target_"]) in FROZEN
