"""The hidden folder beside a destination where shards are made, so that an interrupted making can go on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from latentdiff.config.errors import InputError
from latentdiff.data.index import ShardInfo
from latentdiff.data.shards import refuse_occupied

_JOURNAL = "journal.jsonl"
_SHARDS = "shards"


@dataclass
class Progress:
    """How far a making is: after the last complete shard of the journal, or since."""

    rows: int = 0
    """Rows of the source that are dealt with."""
    infos: list[ShardInfo] = field(default_factory=list)
    written: int = 0
    """Samples in these shards."""
    digests: dict[str, int] = field(default_factory=dict)
    """sha256 of an image file -> number of the sample that has it."""
    notes: list[dict] = field(default_factory=list)
    """What is to be known of single rows: name, what, why."""


class Work:
    """The journal's first line is the command; each further one a complete shard and what became of the rows up to
    its end. A line that was cut off by a kill counts as not written; its shard is made again."""

    def __init__(self, folder: Path, file: TextIO) -> None:
        self.shards = folder / _SHARDS
        self.progress = Progress()
        self._folder = folder
        self._file = file
        self._noted = 0
        self.begun = False

    def begin(self, command: Mapping[str, object]) -> None:
        """Takes up what the journal holds. InputError where it belongs to another command."""
        command = json.loads(json.dumps(command))
        self._file.seek(0)
        lines = [line for line in self._file if line.endswith("\n")]
        if lines and self.shards.is_dir():
            _check_same(json.loads(lines[0])["command"], command, self._folder)
            for line in lines[1:]:
                self._take(json.loads(line))
            self._noted = len(self.progress.notes)
            self._file.truncate(sum(len(line.encode()) for line in lines))
        else:
            shutil.rmtree(self.shards, ignore_errors=True)
            self.shards.mkdir()
            self._file.truncate(0)
            self._append({"command": command})
        self.begun = True

    def record(self, info: ShardInfo, digests: Sequence[str]) -> None:
        """Writes down a complete shard, with the sha256 of its samples' image files."""
        progress = self.progress
        progress.infos.append(info)
        notes, self._noted = progress.notes[self._noted :], len(progress.notes)
        self._append({"shard": asdict(info), "rows": progress.rows, "digests": list(digests), "notes": notes})

    def _take(self, entry: dict) -> None:
        progress = self.progress
        progress.infos.append(ShardInfo(**entry["shard"]))
        progress.rows = entry["rows"]
        progress.notes += entry["notes"]
        for digest in entry["digests"]:
            progress.digests.setdefault(digest, progress.written)
            progress.written += 1

    def _append(self, entry: dict) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def work_beside(dest: Path) -> Iterator[Work]:
    """The work for ``dest``. When the block ends without an error its shards' folder becomes ``dest``; else all stays
    as it is, to be taken up again, unless no shard is complete.

    Where ``dest`` is a link, what it leads to is meant. Raises InputError as ``refuse_occupied`` does, and where
    another process is at the same work.
    """
    dest = Path(os.path.realpath(dest))
    refuse_occupied(dest)
    folder = dest.parent / f".{dest.name}.making"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _JOURNAL, "a+", encoding="utf-8") as file:
        take(file, f"another process is making {dest}; wait for it or name another destination")
        work = Work(folder, file)
        try:
            yield work
            refuse_occupied(dest)
            os.rename(work.shards, dest)
            done = True
        except BaseException:
            done = work.begun and not work.progress.infos
            raise
        finally:
            if done:
                shutil.rmtree(folder)


def take(file: TextIO, refusal: str) -> None:
    """Locks the open file until it is closed; where another process has it, InputError with ``refusal``."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise InputError(refusal) from error


def _check_same(begun: dict, command: dict, folder: Path) -> None:
    changed = [key for key in {**begun, **command} if begun.get(key) != command.get(key)]
    if changed:
        each = "; ".join(f"{key} was {_short(begun.get(key))}, is {_short(command.get(key))}" for key in changed)
        raise InputError(
            f"{folder} holds the shards of an interrupted command that differs from this one ({each}); give the same "
            "command to go on, or remove that folder to begin anew"
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
