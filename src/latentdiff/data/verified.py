"""Which shards of this machine have been read through and found as their index says."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from latentdiff import durable


def user_cache() -> Path:
    """The folder for what can be made again: ``$LATENTDIFF_CACHE``, else ``~/.cache/latentdiff``."""
    return Path(os.environ.get("LATENTDIFF_CACHE") or Path.home() / ".cache" / "latentdiff")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for a lock among the machine's processes; it ends with the block or the process."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Verified:
    """A memory in a small file of the user's cache, by path, bytes, time of change, inode and sha256.

    A file that cannot be read or written costs the memory alone.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = user_cache() / "verified.json" if path is None else Path(path)
        self._known = self._stored()
        self._added: dict[str, list] = {}

    @classmethod
    @contextlib.contextmanager
    def alone(cls) -> Iterator[Verified]:
        """The memory in the user's cache, for one process of the machine at a time; saved at the end of the block."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a folder that cannot be written, or that has no locks
                user_cache().mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(user_cache() / "verified.lock"))
            verified = cls()
            stack.callback(verified.save)
            yield verified

    def knows(self, path: str, sha256: str) -> bool:
        """Whether this file was added with this sha256 and has not been touched since."""
        return self._known.get(path) == _state(path, sha256)

    def add(self, path: str, sha256: str) -> None:
        self._added[path] = _state(path, sha256)

    def save(self) -> None:
        """Writes what was added beside what other processes have stored meanwhile; files that are gone are dropped."""
        if not self._added:
            return
        known = {path: state for path, state in self._stored().items() if os.path.exists(path)}
        content = json.dumps({**known, **self._added}, indent=0).encode()
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            durable.put_file(self.path, content)

    def _stored(self) -> dict[str, list]:
        try:
            stored = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}


def _state(path: str, sha256: str) -> list:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ino, sha256]
