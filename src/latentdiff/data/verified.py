"""Which shards of this machine have been read through and found as their index says."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from latentdiff.data.index import put_file


def user_cache() -> Path:
    """The folder for what can be made again: ``$LATENTDIFF_CACHE``, else ``~/.cache/latentdiff``."""
    return Path(os.environ.get("LATENTDIFF_CACHE") or Path.home() / ".cache" / "latentdiff")


class Verified:
    """A memory in a small file of the user's cache, by path, bytes, time of change, inode and sha256.

    A file that cannot be read or written costs the memory alone.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = user_cache() / "verified.json" if path is None else Path(path)
        self._known = self._stored()
        self._added: dict[str, list] = {}

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
            put_file(str(self.path), content)

    def _stored(self) -> dict[str, list]:
        try:
            stored = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}


def _state(path: str, sha256: str) -> list:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ino, sha256]
