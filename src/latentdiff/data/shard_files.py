"""Bytes out of shard files, each read checked."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError

_OPEN_FILES = 64


def open_local(path: str) -> int:
    """A descriptor to read the file with."""
    return os.open(path, os.O_RDONLY)


def sha256_of(path: str | Path | int) -> str:
    """Hex sha256 of a file; a descriptor of one is closed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ShardFiles:
    """The opened shards of a set, at most 64 at a time.

    ``open_shard`` makes a descriptor of a path or URL. What cannot be read or differs from its crc32 is an InputError,
    or with ``tolerant`` a BrokenSampleError.
    """

    def __init__(
        self, paths: Sequence[str], *, tolerant: bool = False, open_shard: Callable[[str], int] = open_local
    ) -> None:
        self.paths = paths
        self.tolerant = tolerant
        self.open_shard = open_shard
        self._opened: OrderedDict[int, int] = OrderedDict()

    def read(self, shard: int, offset: int, size: int, crc: int | None) -> bytes:
        """``size`` bytes from byte ``offset`` of the shard, checked against their ``crc`` unless it is None."""
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise self._damaged(shard, f"cannot be read ({error.strerror or error})") from error
        if len(data) != size:
            raise self._damaged(shard, f"is cut off: expected {size} bytes at byte {offset}, got {len(data)}")
        if crc is not None and zlib.crc32(data) != crc:
            raise self._damaged(
                shard,
                f"differs from its index: expected crc32 {crc:08x} of the {size} bytes at byte {offset}, "
                f"got {zlib.crc32(data):08x}",
            )
        return data

    def _damaged(self, shard: int, what: str) -> Exception:
        if self.tolerant:
            return BrokenSampleError(f"its shard {what}")
        return InputError(
            f"{self.paths[shard]} {what}; fetch or make this shard again, or set data.damaged=skip to leave out what "
            "cannot be read"
        )

    def _descriptor(self, shard: int) -> int:
        opened = self._opened.pop(shard, None)
        if opened is None:
            opened = self.open_shard(self.paths[shard])
            self._close_unused()
        self._opened[shard] = opened
        return opened

    def _close_unused(self) -> None:
        """The least recently used, and those deleted meanwhile: only then is their space free."""
        unused = [shard for shard, opened in self._opened.items() if os.fstat(opened).st_nlink == 0]
        unused += [shard for shard in list(self._opened)[: 1 - _OPEN_FILES] if shard not in unused]
        for shard in unused:
            os.close(self._opened.pop(shard))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": OrderedDict()}

    def __del__(self) -> None:
        for opened in getattr(self, "_opened", {}).values():
            os.close(opened)
