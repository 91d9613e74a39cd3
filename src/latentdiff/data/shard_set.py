"""A set of WebDataset shards as one table of samples, read by byte offset in any order."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.tar_scan import scan_tar

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_OPEN_FILES = 64


class ShardTable:
    """Every sample of some shards: its key, its shard, and where each of its files lies. Plain arrays, so that worker
    processes share it. ``without_image`` counts the keys that have no image; they are no samples."""

    def __init__(self, paths: Sequence[str], names: Sequence[str]) -> None:
        self.paths = list(paths)
        self.without_image = 0
        self.extensions: list[str] = []
        keys: list[bytes] = []
        shard: list[int] = []
        counts: list[int] = []
        members: list[tuple[int, int, int]] = []
        for number, (path, name) in enumerate(zip(paths, names)):
            for key, files in self._samples(path):
                keys.append(f"{name}/{key}".encode())
                shard.append(number)
                counts.append(len(files))
                members += files
        self.keys = np.array(keys, dtype=np.bytes_)
        self.shard = np.array(shard, dtype=np.int32)
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.members = np.array(members, dtype=np.int64).reshape(-1, 3)
        """(extension number, offset, size) of each file, sample by sample."""

    def _samples(self, path: str) -> list[tuple[str, list[tuple[int, int, int]]]]:
        samples: dict[str, dict[int, tuple[int, int, int]]] = {}
        for member in scan_tar(path):
            key, extension = split_name(member.name)
            if not key:
                continue
            number = self._extension(extension)
            files = samples.setdefault(key, {})
            if number in files:
                raise InputError(f"{path} holds '{key}.{extension}' twice; every key must be unique within a shard")
            files[number] = (number, member.offset, member.size)
        images = {self.extensions.index(e) for e in IMAGE_EXTENSIONS if e in self.extensions}
        kept = [(key, list(files.values())) for key, files in samples.items() if images & files.keys()]
        if not kept:
            raise InputError(
                f"{path} holds no images ({' '.join('.' + e for e in IMAGE_EXTENSIONS)}); expected members like "
                "000000000.jpg and 000000000.txt"
            )
        self.without_image += len(samples) - len(kept)
        return kept

    def _extension(self, extension: str) -> int:
        if extension not in self.extensions:
            self.extensions.append(extension)
        return self.extensions.index(extension)


class ShardSet:
    """Samples 0 .. len-1 of a table, or of a selection of it."""

    def __init__(self, table: ShardTable, digests: Sequence[str], rows: np.ndarray | None = None) -> None:
        self.table = table
        self.digests = list(digests)
        """Per shard its sha256 where an index gives it, else its name and size."""
        self.rows = np.arange(len(table.keys)) if rows is None else rows
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        """'shard/key', unique in the set."""
        return self.table.keys[self.rows[index]].decode()

    def all_keys(self) -> list[str]:
        return [key.decode() for key in self.table.keys[self.rows]]

    def where(self, index: int) -> str:
        """The sample's key and shard file, for messages."""
        return f"'{self.key(index)}' in {self.table.paths[self.table.shard[self.rows[index]]]}"

    def samples_per_shard(self) -> list[int]:
        return np.bincount(self.table.shard[self.rows], minlength=len(self.table.paths)).tolist()

    def has(self, extension: str) -> np.ndarray:
        """bool (len,): which samples have a non-empty file of this extension."""
        table = self.table
        if extension not in table.extensions:
            return np.zeros(len(self), dtype=bool)
        fits = (table.members[:, 0] == table.extensions.index(extension)) & (table.members[:, 2] > 0)
        owner = np.repeat(np.arange(len(table.keys)), np.diff(table.first))
        found = np.zeros(len(table.keys), dtype=bool)
        found[owner[fits]] = True
        return found[self.rows]

    def read(self, index: int, extension: str) -> bytes | None:
        """The file's bytes, None where the sample has no such file."""
        table, row = self.table, int(self.rows[index])
        for number, offset, size in table.members[table.first[row] : table.first[row + 1]].tolist():
            if table.extensions[number] == extension:
                return self._pread(int(table.shard[row]), offset, size)
        return None

    def read_image(self, index: int) -> bytes:
        """The sample's image file, undecoded; the first of jpg, jpeg, png, webp that it has."""
        found = (self.read(index, extension) for extension in IMAGE_EXTENSIONS)
        return next(data for data in found if data is not None)

    def select(self, indices: Sequence[int] | np.ndarray) -> ShardSet:
        """The given samples as a set of their own."""
        return ShardSet(self.table, self.digests, self.rows[np.asarray(indices, dtype=np.int64)])

    def fingerprint(self) -> str:
        """Hex digest of the content: of the shards and of which of their samples belong to the set."""
        digest = hashlib.sha256("\n".join(self.digests).encode())
        digest.update(np.ascontiguousarray(self.rows, dtype="<i8").tobytes())
        return digest.hexdigest()

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        path = self.table.paths[shard]
        fd = self._files.pop(shard, None)
        if fd is None:
            fd = os.open(path, os.O_RDONLY)
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files[shard] = fd
        data = os.pread(fd, size, offset)
        if len(data) != size:
            raise InputError(f"{path} has become shorter since it was opened; do not change shards during a run")
        return data

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        for fd in getattr(self, "_files", {}).values():
            os.close(fd)


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: 'a/0001.seg.png' -> ('a/0001', 'seg.png'); ('', '') for hidden files and names without dot."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()
