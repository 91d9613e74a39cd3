"""Remote shards: each is fetched whole on its first read, checked, and kept in a local folder of bounded size."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.fetching import Fetcher, RefusedError
from latentdiff.data.index import INDEX_NAME, TABLE_NAME, Index, ShardInfo, load_index, parse_index
from latentdiff.data.shard_files import open_local, sha256_of
from latentdiff.data.verified import locked, user_cache

_log = logging.getLogger(__name__)
_PART = ".part"
_OURS = re.compile(r"[0-9a-f]{64}(?:\.(\d+)\.part)?")
"""Names of shards, and of those being fetched with the bytes they claim; nothing else in the folder is touched."""
_POLL = 0.2
"""Seconds between looks for room."""


class ShardCache:
    """Copies of remote shards in ``folder`` (default: ``shards`` in the user's cache), named by their sha256.

    The least recently opened are deleted where more than ``max_bytes`` of them would lie there; other files in the
    folder neither count nor are they touched. A deleted shard that a process is reading keeps its space until that
    process opens another one. Any number of processes of one machine may share the folder: one fetches a shard, the
    others wait for it. Failures are met as ``Fetcher`` says.
    """

    def __init__(
        self, *, folder: str | None = None, max_bytes: int = 100 << 30, retries: int = 5, first_wait: float = 1.0
    ) -> None:
        self.folder = user_cache() / "shards" if folder is None else Path(folder).absolute()
        self.max_bytes = max_bytes
        self._fetcher = Fetcher(retries=retries, first_wait=first_wait)

    def read_index(self, url: str) -> Index:
        """The index in the folder ``url``, asked for anew each time; its table is fetched again only if it changed.

        Raises InputError where there is none: remote shards cannot be read without.
        """
        place = self.folder / "indexes" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._make(place)
        with locked(place / "lock"):
            part, table = place / f"fetched{_PART}", place / TABLE_NAME
            try:
                self._fetcher.fetch(f"{url}/{INDEX_NAME}", part)
                _, sha256 = parse_index(part.read_bytes(), url)
                os.replace(part, place / INDEX_NAME)
                if not table.is_file() or sha256_of(table) != sha256:
                    self._fetcher.fetch_checked(f"{url}/{TABLE_NAME}", part, sha256)
                    os.replace(part, table)
            except RefusedError as error:
                raise InputError(
                    f"the index of {url} {error}; remote shards need one: run 'latentdiff shards index FOLDER' where "
                    f"they lie and upload {INDEX_NAME} and {TABLE_NAME} beside them"
                ) from error
        return load_index(place, url)

    def open(self, url: str, info: ShardInfo) -> int:
        """A descriptor to read the shard with. Raises RefusedError where it cannot be had as its index describes it."""
        path = self.folder / info.sha256
        try:
            return _opened(path, info.bytes)
        except FileNotFoundError:
            self._make(self.folder / "locks")
        with locked(self._lock(info.sha256)):
            try:
                return _opened(path, info.bytes)
            except FileNotFoundError:
                return self._fetched(url, info, path)

    def _fetched(self, url: str, info: ShardInfo, path: Path) -> int:
        part = path.with_name(f"{info.sha256}.{info.bytes}{_PART}")
        if not self._room_for(part, info.bytes):
            _log.warning("%s waits for room: shards that are being fetched fill max_bytes of data.cache", url)
            while not self._room_for(part, info.bytes):
                time.sleep(_POLL)
        try:
            self._fetcher.fetch_checked(url, part, info.sha256)
            opened = _opened(part, info.bytes)
            os.fsync(opened)
            os.replace(part, path)
            return opened
        finally:
            part.unlink(missing_ok=True)

    def _room_for(self, part: Path, size: int) -> bool:
        """Claims ``size`` bytes by the name of ``part``; False while shards that are being fetched need the room."""
        if size > self.max_bytes:
            raise InputError(f"data.cache: a shard of {size} bytes exceeds max_bytes={self.max_bytes}; raise it")
        with locked(self.folder / "locks" / "room"):
            held = sorted(self._held(part))
            excess = sum(claimed for _, claimed, _ in held) + size - self.max_bytes
            for _, claimed, path in held:
                if excess > 0 and (path.suffix != _PART or _is_free(self._lock(path.name.partition(".")[0]))):
                    path.unlink(missing_ok=True)
                    excess -= claimed
            if excess <= 0:
                part.touch()
            return excess <= 0

    def _held(self, but: Path) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes claimed, path) of all shards that are here or being fetched."""
        for path in self.folder.iterdir():
            ours = _OURS.fullmatch(path.name)
            with suppress(FileNotFoundError):  # moved or deleted meanwhile by another process
                if ours and path != but and path.is_file():
                    state = path.stat()
                    yield state.st_mtime, int(ours[1] or state.st_size), path

    def _lock(self, sha256: str) -> Path:
        return self.folder / "locks" / sha256

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.cache: {folder} cannot be made ({error.strerror}); name another folder") from error


class RemoteShards:
    """Opens the shards of a set: those in ``infos`` through the cache, others as local files. One that was refused is
    not asked for again."""

    def __init__(self, cache: ShardCache, infos: Mapping[str, ShardInfo]) -> None:
        self.cache = cache
        self.infos = dict(infos)
        self._refused: dict[str, str] = {}

    def __call__(self, path: str) -> int:
        if path not in self.infos:
            return open_local(path)
        if path in self._refused:
            raise RefusedError(self._refused[path])
        try:
            return self.cache.open(path, self.infos[path])
        except RefusedError as error:
            self._refused[path] = str(error)
            _log.warning("%s with %d samples %s", path, self.infos[path].samples, error)
            raise


def _opened(path: Path, size: int) -> int:
    """A descriptor, and the time of use noted. FileNotFoundError where the file is not there with ``size`` bytes."""
    opened = os.open(path, os.O_RDONLY)
    if os.fstat(opened).st_size != size:
        os.close(opened)
        raise FileNotFoundError(f"{path} does not have its {size} bytes")
    os.utime(opened)
    return opened


def _is_free(path: Path) -> bool:
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
