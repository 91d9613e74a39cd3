"""A whole model of another program as a checkpoint of ours."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError

from latentdiff.checkpoint.foreign.pipeline import reading, writing
from latentdiff.checkpoint.foreign.pipeline.whole import Told
from latentdiff.config.errors import InputError


def import_model(path: str | Path, dest: str | Path, told: Told) -> list[str]:
    """Writes the single file or pipeline at ``path`` as the new folder ``dest``; returns what the user should know.

    Raises InputError where ``path`` is no whole model, or ``dest`` stands already or cannot be written.
    """
    dest = Path(dest)
    if os.path.lexists(dest):
        raise InputError(f"'{dest}' stands already and is not overwritten; name another place, or remove it")
    model = reading.read(path, told)
    try:
        writing.write(model, dest)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"'{dest}' cannot be written ({why}); name another place") from error
    return [*model.notes, f"images of {model.size} pixels; it brings no data: evaluate.py needs data=... as well"]
