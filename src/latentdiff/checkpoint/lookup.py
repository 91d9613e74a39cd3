"""Where a checkpoint is: the folder that a path means, and what is near one that means none. Without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from latentdiff import durable
from latentdiff.checkpoint.manifest import MANIFEST
from latentdiff.config.errors import InputError

LAST, BEST = "last", "best"
NAMED = 6
"""Runs of a folder that a message lists."""


def resolve(path: str | Path, *, prefer: Sequence[str] = ("best", "last")) -> Path:
    """The checkpoint directory meant by a checkpoint directory, a ``checkpoints`` folder or a run directory."""
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise InputError(f"'{path}' is a URL; checkpoints are read from disk: download it first and give its folder")
    path = Path(path)
    if path.is_file():
        raise InputError(f"'{path}' is a file, a checkpoint is a directory with a {MANIFEST}; give that directory")
    looked = [path, *(path / "checkpoints" / name for name in prefer), *(path / name for name in prefer)]
    for candidate in looked:
        before = kept(candidate.parent) if candidate.name == LAST else []
        for standing in (candidate, *durable.set_aside(candidate), *before):
            if (standing / MANIFEST).is_file():
                return standing
    raise InputError(f"no checkpoint found under '{path}'{_instead(path, looked)}")


def kept(folder: Path) -> list[Path]:
    """The checkpoints of a run that were ``last`` before, the newest first."""
    return sorted(folder.glob("batch-????????"), reverse=True)


def kept_name(batches_seen: int) -> str:
    """Under which a ``last`` of that many batches is kept."""
    return f"batch-{batches_seen:08d}"


def _instead(path: Path, looked: Sequence[Path]) -> str:
    """What stands beside a path that is not there, the runs in a folder of runs, or the places that were looked at."""
    if not path.exists():
        missing = next((each for each in reversed((path, *path.parents)) if not each.exists()), path)
        beside = [each.name for each in missing.parent.iterdir() if each.is_dir()] if missing.parent.is_dir() else []
        near = [f"'{missing.parent / name}'" for name in get_close_matches(missing.name, beside)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f": there is no '{missing}'{hint}"
    runs = sorted({each.parents[2] for each in path.glob(f"*/checkpoints/*/{MANIFEST}")})
    if runs:
        more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
        return f"; it holds runs, name one of them: {_listed(runs[:NAMED])}{more}"
    return f"; looked for {_listed([candidate / MANIFEST for candidate in looked])}"


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths)
