"""Shards held against their index: which of their samples are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.fetching import RefusedError
from latentdiff.data.index import ShardInfo
from latentdiff.data.shard_files import ShardFiles, sha256_of
from latentdiff.data.shard_table import ShardTable
from latentdiff.data.verified import Verified


@dataclass(frozen=True, eq=False)
class ShardDamage:
    """How a shard differs from its index."""

    path: str
    expected: ShardInfo
    bytes: int | None
    """None where it is missing, or cannot be fetched as its index describes it."""
    sha256: str | None
    """None where it was not computed: the bytes tell already."""
    lost: np.ndarray
    """bool (samples of the shard,): those with a file that cannot be read or differs from its crc32."""

    @property
    def samples(self) -> int:
        """Samples that are whole."""
        return int((~self.lost).sum())

    def __str__(self) -> str:
        whole = f"{self.samples} of {self.expected.samples} samples are whole"
        if self.bytes is None:
            return f"{self.path} is missing, expected {self.expected.bytes} bytes; {whole}"
        if self.sha256 is None:
            return f"{self.path} has {self.bytes} bytes, expected {self.expected.bytes}; {whole}"
        return f"{self.path} has the sha256 {self.sha256}, expected {self.expected.sha256}; {whole}"


class DamagedShardsError(InputError):
    """Shards that differ from their index, all that were found."""

    def __init__(self, damaged: list[ShardDamage]) -> None:
        self.damaged = damaged
        lines = "\n".join(map(str, damaged))
        super().__init__(
            f"{lines}\nfetch or make {'this shard' if len(damaged) == 1 else f'these {len(damaged)} shards'} again, or "
            "set data.damaged=skip to leave out what cannot be read"
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.damaged,)


def damage_by_bytes(table: ShardTable, shard: int, expected: ShardInfo) -> ShardDamage | None:
    """A local shard that is missing or has another number of bytes; only such a shard is read."""
    path = table.paths[shard]
    found = os.path.getsize(path) if os.path.isfile(path) else None
    if found == expected.bytes:
        return None
    return ShardDamage(path, expected, found, None, lost_samples(table, shard))


def damage_by_sha256(
    table: ShardTable, shard: int, expected: ShardInfo, verified: Verified | None
) -> ShardDamage | None:
    """A local shard of the right number of bytes whose sha256 differs; one that ``verified`` remembers is not read."""
    path = table.paths[shard]
    if verified is not None and verified.knows(path, expected.sha256):
        return None
    try:
        found = sha256_of(path)
    except OSError as error:
        found = f"of an unreadable file ({error.strerror})"
    if found != expected.sha256:
        return ShardDamage(path, expected, expected.bytes, found, lost_samples(table, shard))
    if verified is not None:
        verified.add(path, expected.sha256)
    return None


def damage_by_fetching(
    table: ShardTable, shard: int, expected: ShardInfo, open_shard: Callable[[str], int]
) -> ShardDamage | None:
    """A remote shard that cannot be fetched whole, or whose copy on this machine has another sha256."""
    path, every = table.paths[shard], np.ones(expected.samples, dtype=bool)
    try:
        found = sha256_of(open_shard(path))
    except RefusedError:
        return ShardDamage(path, expected, None, None, every)
    return None if found == expected.sha256 else ShardDamage(path, expected, expected.bytes, found, every)


def lost_samples(table: ShardTable, shard: int) -> np.ndarray:
    """bool (samples of the shard,): those with a file that cannot be read or differs from its crc32."""
    first, stop = table.first[shard : shard + 2].tolist()
    if not os.path.isfile(table.paths[shard]):
        return np.ones(stop - first, dtype=bool)
    files = ShardFiles(table.paths, tolerant=True)
    return np.array([not _whole(table, files, shard, row) for row in range(first, stop)], dtype=bool)


def _whole(table: ShardTable, files: ShardFiles, shard: int, row: int) -> bool:
    try:
        for offset, size, crc in table.files_of(row).values():
            files.read(shard, offset, size, crc)
    except BrokenSampleError:
        return False
    return True
