"""Files and directories that appear at their place whole, on disk, or not at all.

Each is written beside its place under a hidden name, flushed and renamed. The hidden name is on the same file system:
a rename there is atomic, and a full disk cannot harm what stands at the place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def passed(point: str) -> None:
    """Named points of a save, for the fault tests, which put a kill in this function's place."""


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yields the name to write to; the file is moved to ``path`` when the block ends without an error."""
    staged = _beside(Path(path), "tmp")
    staged.touch()
    usual = staged.stat().st_mode
    try:
        yield staged
        staged.chmod(usual)  # safetensors lets nobody but the owner read what it writes
        flush(staged)
        os.replace(staged, path)
        flush(staged.parent)
    finally:
        staged.unlink(missing_ok=True)


def put_file(path: str | Path, content: bytes | memoryview) -> None:
    """A file with this content, in the place of one that is there."""
    with new_file(path) as staged:
        staged.write_bytes(content)


@contextmanager
def new_directory(
    path: str | Path, *, keep_as: Path | None = None, check: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """Yields an empty directory to fill; it takes the place of ``path`` when the block ends without an error.

    A directory cannot be replaced in one step: the old one is renamed, the new one moved in. The old one is called
    ``keep_as`` from then on, a name beside ``path`` that is free; without one it is set aside and deleted when the
    new one stands. A process killed between the two renames leaves it there, see ``set_aside`` and ``tidy``.
    ``check`` looks at the new one, on disk, before anything is moved; what it raises leaves the old one untouched.
    """
    path = Path(path)
    tidy(path.parent, path.name)
    staged = _beside(path, "tmp")
    staged.mkdir()
    try:
        yield staged
        passed("written")
        usual = staged.stat().st_mode & 0o666
        for file in staged.iterdir():
            if file.is_file():
                file.chmod(usual)
            flush(file)
        flush(staged)
        passed("flushed")
        if check is not None:
            check(staged)
        _move_in(staged, path, keep_as)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def set_aside(path: Path) -> list[Path]:
    """What once stood at ``path`` and was being replaced when a process was killed."""
    return sorted(path.parent.glob(f".old-{path.name}-????????"))


def tidy(folder: Path, name: str = "*") -> None:
    """Clears what killed processes left in ``folder`` of ``name``, by default of every name: brings back an old
    directory whose place is empty, drops the rest. To be called by the one process that writes there.

    Of every name only in a folder of our own: what safetensors leaves under ``.tmp`` names of its own goes as well.
    """
    for old in set_aside(folder / name):
        place = folder / old.name.removeprefix(".old-")[:-9]
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, place)
    for staged in folder.glob(".tmp*" if name == "*" else f".tmp-{name}-????????"):
        if staged.is_dir():
            shutil.rmtree(staged, ignore_errors=True)
        else:
            staged.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Deletes a directory such that no part of it is left at its place."""
    gone = _beside(path, "tmp")
    os.rename(path, gone)
    passed("pruning")
    shutil.rmtree(gone, ignore_errors=True)


def append(path: Path, text: str) -> None:
    """Adds ``text`` at the end of a file, or nothing. Raises OSError when the disk refuses."""
    left = text.encode()
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while left:  # a disk that is almost full takes a part first
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise


def flush(path: Path) -> None:
    """Waits until a file's contents, or a directory's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path, *, from_disk: bool = False) -> str:
    """Of a file's content, hexadecimal; ``from_disk`` asks the system for the disk's copy, not for memory's."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


def _move_in(staged: Path, path: Path, keep_as: Path | None) -> None:
    old = keep_as or _beside(path, "old")
    standing = path.exists()
    if standing:
        os.rename(path, old)
    passed("moved aside")
    try:
        os.rename(staged, path)
    except OSError:
        if standing:
            os.rename(old, path)
        raise
    flush(path.parent)
    passed("moved in")
    if keep_as is None:
        shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, role: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{role}-{path.name}-{uuid.uuid4().hex[:8]}"
