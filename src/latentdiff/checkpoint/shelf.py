"""The checkpoints of one run: ``last``, ``best``, and ``batch-00001000``, what was ``last`` before.

Nothing is renamed or removed before a newer whole one stands on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from latentdiff import durable
from latentdiff.checkpoint import store
from latentdiff.checkpoint.store import BEST, LAST
from latentdiff.config.errors import InputError


def standing(folder: Path, *, best: bool = True) -> list[Path]:
    """All checkpoints in ``folder``, damaged ones too, the newest first: by batches seen.

    One with more batches than ``last`` that was saved before it belongs to a course that training has left (it was
    resumed from an older one); it comes after the others. One whose manifest cannot be read comes first.
    """
    places = [folder / LAST, *store.kept(folder), *([folder / BEST] if best else [])]
    found = [next((p for p in (place, *durable.set_aside(place)) if p.is_dir()), None) for place in places]
    manifests = {path: _manifest(path) for path in found if path is not None}
    last = manifests.get(folder / LAST)

    def rank(path: Path) -> tuple[bool, float, bool]:
        own = manifests[path]
        if own is None:
            return True, math.inf, True
        return not (last is not None and own.is_left_by(last)), own.counters["batches_seen"], path.name != BEST

    return sorted(manifests, key=rank, reverse=True)


def first_whole(paths: Iterable[Path]) -> tuple[Path | None, list[str]]:
    """The first whose files are all as its manifest says, None where none is; and the faults of those before it."""
    faults = []
    for path in paths:
        try:
            store.verify(path)
        except InputError as error:
            faults.append(str(error))
        else:
            return path, faults
    return None, faults


def keep_as(path: Path, batches_seen: int) -> Path | None:
    """The name for what stands at ``path`` when a checkpoint of ``batches_seen`` takes its place; None to drop it.

    Kept is a ``last`` that is older than the new one, where its name is free: a resumed run comes by the same batches
    again.
    """
    if path.name != LAST or (own := _manifest(path)) is None or own.counters["batches_seen"] >= batches_seen:
        return None
    place = path.parent / store.kept_name(own.counters["batches_seen"])
    return None if place.exists() else place


def prune(folder: Path, keep: int) -> None:
    """Removes all but ``keep`` checkpoints, ``last`` among them, beside ``best``; first those of batches that ``last``
    has not seen. None where ``last`` cannot be read."""
    if (last := _manifest(folder / LAST)) is None:
        return
    now = store.kept_name(last.counters["batches_seen"])
    older = [path for path in store.kept(folder) if path.name < now]
    for path in set(store.kept(folder)) - set(older[: keep - 1]):
        durable.remove(path)


def _manifest(path: Path) -> store.Manifest | None:
    try:
        return store.read_manifest(path)
    except InputError:
        return None
