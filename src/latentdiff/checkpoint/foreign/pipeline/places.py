"""Where the parts of an imported model are: text encoder and first stage stand in its folder, also when it moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError

CHECKPOINT, FIRST_STAGE, TEXT_ENCODER = "checkpoints/last", "first_stage", "text_encoder"
"""Within the folder of an imported model."""

ROOT = "imported_to"
"""Key of the manifest's ``extra``: the folder as it was called when it was written."""


def moved(value: Any, manifest: store.Manifest, checkpoint: Path) -> Any:
    """``value`` (a path, or plain lists and mappings) with every path into the imported model's folder turned to where
    the folder is now. What other checkpoints say is left as it is."""
    root, parents = manifest.extra.get(ROOT), checkpoint.resolve().parents
    depth = len(Path(CHECKPOINT).parts)
    if not isinstance(root, str) or len(parents) < depth:
        return value
    present = parents[depth - 1]
    whole = any((present / part).is_dir() for part in (FIRST_STAGE, TEXT_ENCODER))
    return _turned(value, root, str(present)) if whole else value


def check_text_encoder(conditioner: Mapping, manifest: store.Manifest, checkpoint: Path) -> None:
    """Raises InputError where an imported model's text encoder is not at the place that its ``conditioner`` names."""
    weights = conditioner.get("weights")
    if ROOT in manifest.extra and isinstance(weights, str) and not Path(weights).exists():
        raise InputError(
            f"'{checkpoint}' is the checkpoint of an imported model, whose text encoder is not at '{weights}'; keep "
            "the folder that the import wrote together, or import the model again"
        )


def _turned(value: Any, old: str, new: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _turned(child, old, new) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_turned(child, old, new) for child in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value
