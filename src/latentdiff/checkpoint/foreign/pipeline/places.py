"""Where the parts of an imported model are: text encoder and first stage stand in its folder, also when it moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentdiff.checkpoint import store

CHECKPOINT, FIRST_STAGE, TEXT_ENCODER = "checkpoints/last", "first_stage", "text_encoder"
"""Within the folder of an imported model."""

ROOT = "imported_to"
"""Key of the manifest's ``extra``: the folder as it was called when it was written."""


def moved(value: Any, manifest: store.Manifest, checkpoint: Path) -> Any:
    """``value`` (a path, or plain lists and mappings) with every path into the imported model's folder turned to where
    the folder is now. What other checkpoints say is left as it is."""
    root = manifest.extra.get(ROOT)
    present = checkpoint.resolve().parents[len(Path(CHECKPOINT).parts) - 1]
    if not isinstance(root, str) or not (present / TEXT_ENCODER).is_dir():
        return value
    return _turned(value, root, str(present))


def _turned(value: Any, old: str, new: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _turned(child, old, new) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_turned(child, old, new) for child in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value
