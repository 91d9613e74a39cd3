"""A set of WebDataset shards as one table of samples, read by byte offset in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.shard_files import ShardFiles
from latentdiff.data.shard_table import IMAGE_EXTENSIONS, ShardTable, printable


class ShardSet:
    """Samples 0 .. len-1 of a table, or of a selection of it. ``lost``, bool (samples of the table,), marks those that
    are known to be unreadable."""

    def __init__(
        self, table: ShardTable, files: ShardFiles, *, lost: np.ndarray | None = None, rows: np.ndarray | None = None
    ) -> None:
        self.table = table
        self.files = files
        self.lost = lost
        self.rows = np.arange(len(table)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        """'shard/key', unique in the set."""
        return self.table.key(int(self.rows[index]))

    def all_keys(self) -> list[str]:
        table, letters = self.table, self.table.keys.tobytes()
        starts, stops = table.first_letter[self.rows].tolist(), table.first_letter[self.rows + 1].tolist()
        return [
            f"{table.names[shard]}/{letters[start:stop].decode(errors='replace')}"
            for shard, start, stop in zip(self.shard_of().tolist(), starts, stops)
        ]

    def where(self, index: int) -> str:
        """The sample's key and shard file, for messages."""
        return f"'{printable(self.key(index))}' in {self.table.paths[self.table.shard(int(self.rows[index]))]}"

    def shard_of(self) -> np.ndarray:
        """int32 (len,): number of each sample's shard in ``table.paths``."""
        table = self.table
        return np.repeat(np.arange(len(table.paths), dtype=np.int32), np.diff(table.first))[self.rows]

    def sizes(self) -> np.ndarray | None:
        """int32 (len, 2): height and width of each upright image, 0 where its header cannot be read; None where a
        shard has no index."""
        return self.table.sizes[self.rows] if self.table.indexed.all() else None

    def broken(self) -> np.ndarray:
        """bool (len,): samples found unreadable when the set was opened with ``damaged="skip"``; reading others may
        still show more."""
        return np.zeros(len(self), dtype=bool) if self.lost is None else self.lost[self.rows]

    def has(self, extension: str) -> np.ndarray:
        """bool (len,): which samples have a non-empty file of this extension."""
        return self.table.has(extension)[self.rows]

    def read(self, index: int, extension: str) -> bytes | None:
        """The file's bytes, None where the sample has no such file.

        Raises InputError where they cannot be read or differ from the index, in a set opened with ``damaged="skip"``
        BrokenSampleError.
        """
        row = int(self.rows[index])
        found = self.table.files_of(row).get(extension)
        if found is None:
            return None
        shard = self.table.shard(row)
        offset, size, crc = found
        return self.files.read(shard, offset, size, crc if self.table.indexed[shard] else None)

    def read_image(self, index: int) -> bytes:
        """The sample's image file, undecoded; the first of jpg, jpeg, png, webp that it has.

        Raises BrokenSampleError where it has none, as the samples of a cache.
        """
        for extension in IMAGE_EXTENSIONS:
            if (data := self.read(index, extension)) is not None:
                return data
        raise BrokenSampleError("it has no image, only cached latents, which data=cached reads")

    def select(self, indices: Sequence[int] | np.ndarray) -> ShardSet:
        """The given samples as a set of their own."""
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        return ShardSet(self.table, self.files, lost=self.lost, rows=rows)

    def fingerprint(self) -> str:
        """Hex digest of the content: of the shards and of which of their samples belong to the set."""
        digest = hashlib.sha256("\n".join(self.table.digests).encode())
        digest.update(np.ascontiguousarray(self.rows, dtype="<i8").tobytes())
        return digest.hexdigest()
