"""Where the parts of a model are that came as one folder, imported or exported: within it, also when it moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentdiff.checkpoint import store
from latentdiff.checkpoint.manifest import MANIFEST
from latentdiff.config.errors import InputError

CHECKPOINT, FIRST_STAGE, TEXT_ENCODER = "checkpoints/last", "first_stage", "text_encoder"
"""Within such a folder."""

ROOT = "imported_to"
"""Key of the manifest's ``extra``: how the checkpoint's paths into the folder begin. What it was called when it was
imported, or ``HERE``."""
HERE = "."
"""As ``ROOT``: paths are relative to the folder, as no run of ours writes them."""

_ENCODERS = ("weights", "model")
"""Settings of a text encoder that may be places."""


def moved(value: Any, manifest: store.Manifest, checkpoint: Path) -> Any:
    """``value`` (a path, or plain lists and mappings) with every path into the model's folder turned to where the
    folder is now. What other checkpoints say is left as it is."""
    root, parents = manifest.extra.get(ROOT), checkpoint.resolve().parents
    depth = len(Path(CHECKPOINT).parts)
    if not isinstance(root, str) or len(parents) < depth:
        return value
    present = parents[depth - 1]
    whole = root == HERE or any((present / part).is_dir() for part in (FIRST_STAGE, TEXT_ENCODER))
    return _turned(value, root, str(present)) if whole else value


def first_stage_in(path: str | Path) -> str | Path:
    """The first stage within ``path`` where that is a whole model's folder; else ``path`` itself."""
    own = Path(path) / FIRST_STAGE
    return own if (own / MANIFEST).is_file() else path


def check_text_encoder(conditioner: Mapping, manifest: store.Manifest, checkpoint: Path) -> None:
    """Raises InputError where a text encoder is not at the place in the model's folder that ``conditioner`` names."""
    if ROOT not in manifest.extra:
        return
    encoders = conditioner.get("parts", {"": conditioner}).values()
    for named in (encoder.get(key) for encoder in encoders for key in _ENCODERS):
        if isinstance(named, str) and Path(named).is_absolute() and not Path(named).exists():
            raise InputError(
                f"'{checkpoint}' is a part of an imported or exported model, whose text encoder is not at '{named}'; "
                "keep the folder together as it was written, or fetch it again"
            )


def _turned(value: Any, old: str, new: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _turned(child, old, new) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_turned(child, old, new) for child in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value
