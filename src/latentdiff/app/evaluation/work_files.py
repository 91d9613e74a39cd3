"""The folder of an evaluation's unfinished work, which belongs to one protocol; and how far the work is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from latentdiff import durable
from latentdiff.app.ranks import Ranks
from latentdiff.config.errors import InputError
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.compare import RESULTS
from latentdiff.evaluation.report import flattened
from latentdiff.evaluation.sample_files import ARRAYS
from latentdiff.evaluation.sample_files import FOLDER as SAMPLES

FOLDER, PROTOCOL = "chunks", "protocol.json"
GRID, REPORT = "grid.png", "report.html"
LOOK, SAY = 1.0, 30.0
"""Seconds between two looks at the folder, and between two lines where there is no terminal."""


def take_up(folder: Path, determines: Mapping[str, object], ranks: Ranks) -> None:
    """Makes the folder of this work, or goes on in that of a killed one. Collective.

    Args:
        determines: all that decides what the files will hold, JSON-ready.

    Raises:
        InputError: the files there are of another protocol, the first difference is named; or nothing says of which.
    """
    if ranks.first:
        file = folder / PROTOCOL
        wanted = json.loads(json.dumps(determines))
        if file.is_file():
            _compare(json.loads(file.read_text(encoding="utf-8")), wanted, folder)
        else:
            if _has_work(folder):
                raise InputError(f"'{folder}' holds work, but no {PROTOCOL} that says of what; remove that folder")
            folder.mkdir(parents=True, exist_ok=True)
            durable.put_file(file, json.dumps(wanted).encode())
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            durable.tidy(place)
    ranks.barrier()


def tidy(where: Path) -> None:
    """Clears what killed evaluations left half written or half removed in their run directory."""
    for name in (FOLDER, RESULTS, GRID, REPORT, ARRAYS):  # no more: it may be a folder of the user's
        durable.tidy(where, name)
    durable.tidy(where / SAMPLES)


def clear(where: Path) -> None:
    """Removes the work in the run directory ``where``, such that no later evaluation finds a part of it."""
    if (where / FOLDER).exists():
        durable.remove(where / FOLDER)


@contextmanager
def no_work_if_refused(where: Path, ranks: Ranks) -> Iterator[None]:
    """Where the block refuses its input, before any image is made, the real images that were measured for it are no
    work to go on with."""
    try:
        yield
    except InputError:
        if ranks.first and not (where / FOLDER / PROTOCOL).exists():
            clear(where)
        raise


def _has_work(folder: Path) -> bool:
    """Whether there are files, but for those of a folder in it that says itself of what they are."""
    inner = [path for path in folder.glob("*") if not (path / PROTOCOL).is_file()]
    return any(path.is_file() or any(each.is_file() for each in path.rglob("*")) for path in inner)


def _compare(begun: dict, wanted: dict, folder: Path) -> None:
    before, now = dict(flattened(begun)), dict(flattened(wanted))
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise InputError(
                f"'{folder}' holds the unfinished work of an evaluation with {key} = "
                f"{json.dumps(before.get(key))}, now it is {json.dumps(now.get(key))}; give the same command to go on, "
                "another run_dir (or DEST), or remove that folder"
            )


@contextmanager
def watched(folders: Sequence[ChunkFolder], what: str, console: Console, ranks: Ranks) -> Iterator[None]:
    """Shows while the block runs how many images of all ranks are done, and how long the rest will take."""
    if not ranks.first:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(folders, what, console, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(folders: Sequence[ChunkFolder], what: str, console: Console, ended: threading.Event) -> None:
    total = sum(len(chunk) for folder in folders for chunk in folder.chunks)
    begun, since = _done(folders), time.monotonic()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, said = bar.add_task(what, total=total, completed=begun), since
        while not ended.wait(LOOK):
            done, now = _done(folders), time.monotonic()
            bar.update(task, completed=done)
            if not console.is_terminal and now - said >= SAY:
                said = now
                left = (now - since) / (done - begun) * (total - done) if done > begun else None
                rest = "" if left is None else f", about {left / 60:.0f} min left"
                console.print(f"{what}: {done} of {total}{rest}", soft_wrap=True)


def _done(folders: Sequence[ChunkFolder]) -> int:
    return sum(folder.done() for folder in folders)
