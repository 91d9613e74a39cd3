"""Files and directories that appear at their place whole, on disk, or not at all.

Each is written beside its place under a hidden name, flushed and renamed. The hidden name is on the same file system:
a rename there is atomic, and a full disk cannot harm what stands at the place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yields the name to write to; the file is moved to ``path`` when the block ends without an error."""
    staged = _beside(Path(path), "tmp")
    try:
        yield staged
        flush(staged)
        os.replace(staged, path)
        flush(staged.parent)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty directory to fill; it takes the place of ``path`` when the block ends without an error.

    A directory cannot be replaced in one step: the old one is renamed aside, the new one in, the old one deleted.
    A process killed between the two renames leaves the old one aside, where ``set_aside`` finds it.
    """
    path = Path(path)
    _tidy(path)
    staged = _beside(path, "tmp")
    staged.mkdir()
    try:
        yield staged
        for file in staged.iterdir():
            flush(file)
        flush(staged)
        _move_in(staged, path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def set_aside(path: Path) -> list[Path]:
    """What once stood at ``path`` and was being replaced when a process was killed."""
    return sorted(path.parent.glob(f".old-{path.name}-????????"))


def flush(path: Path) -> None:
    """Waits until a file's contents, or a directory's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move_in(staged: Path, path: Path) -> None:
    old = _beside(path, "old")
    standing = path.exists()
    if standing:
        os.rename(path, old)
    try:
        os.rename(staged, path)
    except OSError:
        if standing:
            os.rename(old, path)
        raise
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _tidy(path: Path) -> None:
    """Clears what a killed process left: brings back the old directory if none stands, drops the rest."""
    for old in set_aside(path):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, path)
    for staged in path.parent.glob(f".tmp-{path.name}-????????"):
        shutil.rmtree(staged, ignore_errors=True)


def _beside(path: Path, role: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{role}-{path.name}-{uuid.uuid4().hex[:8]}"


def sha256(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()
