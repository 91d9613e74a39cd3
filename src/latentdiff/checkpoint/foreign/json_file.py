"""JSON files of other programs."""

from __future__ import annotations

import json
from pathlib import Path

from latentdiff.config.errors import InputError


def load_json(path: Path) -> dict:
    """The mapping in the file ``path``. Raises InputError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"'{path}' is no readable JSON ({error}); copy the folder again") from error
    if not isinstance(found, dict):
        raise InputError(f"'{path}' is no configuration: expected a mapping, got a {type(found).__name__}")
    return found
