"""One pass over the bytes of a shard: everything that an index says about it."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator

from latentdiff.config.errors import InputError
from latentdiff.data.image_header import upright_size
from latentdiff.data.shard_table import IMAGE_EXTENSIONS, ShardTable, split_name, table_of
from latentdiff.data.tar_scan import TarMember, scan_tar

_BLOCK = 1 << 20


def scan_contents(path: str) -> ShardTable | str:
    """The indexed table of one shard, its digest the sha256; what is wrong with a damaged one."""
    try:
        with open(path, "rb", buffering=0) as file:
            contents = _Contents(file.fileno())
            members = contents.follow(scan_tar(path))
            return table_of(path, members, digest=contents.digest, crcs=contents.crcs, sizes=contents.sizes)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    except InputError as error:
        return str(error)


class _Contents:
    """Reads the bytes that a scan passes over: sha256 of all, crc32 of each member, size of each image by offset."""

    def __init__(self, descriptor: int) -> None:
        self.crcs: dict[int, int] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self._position = 0

    def follow(self, members: Iterable[TarMember]) -> Iterator[TarMember]:
        for member in members:
            self._pass(member.offset)
            data = os.pread(self._descriptor, member.size, member.offset)
            self._sha256.update(data)
            self._position += len(data)
            self.crcs[member.offset] = zlib.crc32(data)
            if split_name(member.name)[1] in IMAGE_EXTENSIONS:
                self.sizes[member.offset] = upright_size(data)
            yield member

    def digest(self) -> str:
        self._pass(None)
        return self._sha256.hexdigest()

    def _pass(self, stop: int | None) -> None:
        """Up to byte ``stop``, None: to the end."""
        while stop is None or self._position < stop:
            wanted = _BLOCK if stop is None else min(_BLOCK, stop - self._position)
            block = os.pread(self._descriptor, wanted, self._position)
            if not block:
                return
            self._sha256.update(block)
            self._position += len(block)
