"""One file from a URL to a local path, tried again when the network fails."""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from pathlib import Path
from typing import Any

from latentdiff.config.errors import InputError
from latentdiff.data.shard_files import sha256_of

_log = logging.getLogger(__name__)
_LONGEST_WAIT = 60.0
_SILENCE = 60.0
"""Seconds without a byte after which an http connection counts as broken."""
_JITTER = random.SystemRandom()
"""Its own, so that training's random numbers do not depend on the network."""
_PASSING_STATUS = (408, 425, 429)
"""Codes of the 4xx that pass: timeout, too early, too many requests."""


class RefusedError(OSError):
    """The URL will not give the file, however often it is asked: it is not there, or access is denied."""


class Fetcher:
    """Copies URLs to files. After ``retries`` further tries, waiting ``first_wait`` seconds, twice as long each time,
    less a random part of up to a half, a failure is final."""

    def __init__(self, *, retries: int = 5, first_wait: float = 1.0) -> None:
        if retries < 0 or first_wait < 0:
            raise InputError(f"expected retries and first_wait of at least 0, got {retries} and {first_wait}")
        self.retries = retries
        self.first_wait = first_wait

    def fetch_checked(self, url: str, path: str | Path, sha256: str) -> None:
        """``fetch``, and again where the content has another sha256. RefusedError where it stays the same wrong one."""
        before = None
        for attempt in range(self.retries + 1):
            self.fetch(url, path)
            found = sha256_of(path)
            if found == sha256:
                return
            if found == before or attempt == self.retries:
                break
            before = found
            self.wait(attempt, f"{url} came with the sha256 {found}, expected {sha256}")
        raise RefusedError(
            f"differs from its index: expected sha256 {sha256}, got {found} in {os.path.getsize(path)} bytes"
        )

    def fetch(self, url: str, path: str | Path) -> None:
        """Writes what ``url`` gives to ``path``.

        Raises RefusedError, at once, where the file is not there or access is denied, InputError where a library is
        missing, the disk is full, or all tries have failed.
        """
        for attempt in range(self.retries + 1):
            try:
                filesystem, inner = _filesystem(url)
                return filesystem.get_file(inner, str(path))
            except ImportError as error:
                raise InputError(
                    f"{url} needs an optional library ({error}); pip install 'latentdiff[remote]'"
                ) from error
            except Exception as error:  # every protocol raises errors of its own
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise InputError(
                        f"no space left for {path}; free some, or lower or move data.cache (shards that are drawn with "
                        "replacement go to the temporary folder: move it by TMPDIR)"
                    ) from error
                if _is_final(error):
                    raise RefusedError(f"cannot be fetched: {_said(error)}") from error
                if attempt == self.retries:
                    raise InputError(
                        f"{url} could not be fetched in {attempt + 1} tries, the last ended with: {_said(error)}; "
                        "check the network and start again"
                    ) from error
                self.wait(attempt, f"{url}: {_said(error)}")

    def wait(self, attempt: int, why: str) -> None:
        """Sleeps before the try after ``attempt``."""
        seconds = min(self.first_wait * 2**attempt, _LONGEST_WAIT) * _JITTER.uniform(0.5, 1)
        _log.warning("%s; trying again in %.1f s", why, seconds)
        time.sleep(seconds)


def _filesystem(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it); credentials are looked for where the protocol's library does."""
    from fsspec.core import url_to_fs

    if not url.startswith(("http://", "https://")):
        return url_to_fs(url)
    import aiohttp

    # aiohttp would end every download after 5 minutes
    patience = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return url_to_fs(url, client_kwargs={"timeout": patience})


def _is_final(error: Exception) -> bool:
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, TypeError)):
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _PASSING_STATUS


def _status(error: Exception) -> int | None:
    """The http status, wherever the protocol's library puts it."""
    places = (error, getattr(error, "response", None))
    found = (getattr(place, name, None) for place in places for name in ("status", "status_code", "code"))
    return next((status for status in found if isinstance(status, int)), None)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
