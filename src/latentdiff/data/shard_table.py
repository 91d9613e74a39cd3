"""Where the files of every sample lie in a set of shards: a few plain arrays, from an index or from the tar headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.tar_scan import BLOCK, TarMember

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
SAMPLE_EXTENSIONS = (*IMAGE_EXTENSIONS, "latent.npy")
"""A key with one of these is a sample."""
FILE = np.dtype([("extension", "<u2"), ("block", "<u4"), ("size", "<u4"), ("crc", "<u4")])
"""A file of a sample: number of its extension, place in blocks of 512 bytes, bytes, and crc32 of these."""


@dataclass(frozen=True, eq=False)
class ShardTable:
    """Every sample of some shards, shard by shard. ``first`` arrays have one entry more than what they divide.

    A sample with a key of 9 letters and three files takes 75 bytes, and 8 more in a ``ShardSet``; the worker processes
    of a rank share them.
    """

    paths: list[str]
    """Per shard its file or URL."""
    names: list[str]
    """Per shard what stands before the keys of its samples."""
    digests: list[str]
    """Per shard its sha256 where an index gives it, else its name and size."""
    indexed: np.ndarray
    """bool (shards,): whether the crc32 of its files and the sizes of its images are known."""
    extensions: list[str]
    first: np.ndarray
    """int64 (shards + 1,): the shard's first sample."""
    first_file: np.ndarray
    """int64 (samples + 1,): the sample's first entry of ``files``."""
    files: np.ndarray
    """FILE (files,)."""
    first_letter: np.ndarray
    """int64 (samples + 1,): where the sample's key begins in ``keys``."""
    keys: np.ndarray
    """uint8 (letters,): all keys in UTF-8, one after the other."""
    sizes: np.ndarray
    """int32 (samples, 2): height and width of the upright image, 0 without one whose header can be read."""
    without_image: int = 0
    """Keys that have neither an image nor cached latents; they are no samples."""

    def __len__(self) -> int:
        return len(self.sizes)

    def shard(self, row: int) -> int:
        """The shard of a sample."""
        return int(np.searchsorted(self.first, row, side="right")) - 1

    def key(self, row: int) -> str:
        """'shard/key'."""
        start, stop = self.first_letter[row : row + 2]
        return f"{self.names[self.shard(row)]}/{self.keys[start:stop].tobytes().decode(errors='replace')}"

    def files_of(self, row: int) -> dict[str, tuple[int, int, int]]:
        """Extension -> (offset, size, crc32), in bytes, of the sample's files."""
        start, stop = self.first_file[row : row + 2].tolist()
        found = self.files[start:stop].tolist()
        return {self.extensions[number]: (block * BLOCK, size, crc) for number, block, size, crc in found}

    def has(self, extension: str) -> np.ndarray:
        """bool (samples,): which samples have a non-empty file of this extension."""
        found = np.zeros(len(self), dtype=bool)
        if extension in self.extensions:
            fits = (self.files["extension"] == self.extensions.index(extension)) & (self.files["size"] > 0)
            found[np.searchsorted(self.first_file, np.flatnonzero(fits), side="right") - 1] = True
        return found

    def take(self, shards: Sequence[int]) -> ShardTable:
        """The table of these shards alone, in this order."""
        if list(shards) == list(range(len(self.paths))):
            return self
        return concatenate([self._one(shard) for shard in shards])

    def _one(self, shard: int) -> ShardTable:
        rows = slice(*self.first[shard : shard + 2].tolist())
        ends = slice(rows.start, rows.stop + 1)
        first_file, first_letter = self.first_file[ends], self.first_letter[ends]
        return ShardTable(
            paths=self.paths[shard : shard + 1],
            names=self.names[shard : shard + 1],
            digests=self.digests[shard : shard + 1],
            indexed=self.indexed[shard : shard + 1],
            extensions=self.extensions,
            first=np.array([0, rows.stop - rows.start]),
            first_file=first_file - first_file[0],
            files=self.files[first_file[0] : first_file[-1]],
            first_letter=first_letter - first_letter[0],
            keys=self.keys[first_letter[0] : first_letter[-1]],
            sizes=self.sizes[rows],
        )


def concatenate(tables: Sequence[ShardTable]) -> ShardTable:
    """The shards of all tables, one table after the other."""
    if len(tables) == 1:
        return tables[0]
    extensions = list(dict.fromkeys(extension for table in tables for extension in table.extensions))
    files = np.concatenate([table.files for table in tables])
    numbers = {extension: number for number, extension in enumerate(extensions)}
    start = 0
    for table in tables:
        stop = start + len(table.files)
        if table.extensions != extensions[: len(table.extensions)]:
            renumbered = np.array([numbers[extension] for extension in table.extensions], dtype="<u2")
            files["extension"][start:stop] = renumbered[files["extension"][start:stop]]
        start = stop
    return ShardTable(
        paths=[path for table in tables for path in table.paths],
        names=[name for table in tables for name in table.names],
        digests=[digest for table in tables for digest in table.digests],
        indexed=np.concatenate([table.indexed for table in tables]),
        extensions=extensions,
        first=_joined([table.first for table in tables]),
        first_file=_joined([table.first_file for table in tables]),
        files=files,
        first_letter=_joined([table.first_letter for table in tables]),
        keys=np.concatenate([table.keys for table in tables]),
        sizes=np.concatenate([table.sizes for table in tables]),
        without_image=sum(table.without_image for table in tables),
    )


def _joined(firsts: Sequence[np.ndarray]) -> np.ndarray:
    """``first`` arrays of consecutive parts as one of the whole."""
    counts = np.concatenate([np.diff(first) for first in firsts])
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def placed(table: ShardTable, paths: list[str]) -> ShardTable:
    """The table with its shards at these paths or URLs, and the names that tell them apart before the keys."""
    folders = [path.split("/")[:-1] for path in paths]
    common = next((depth for depth, parts in enumerate(zip(*folders)) if len(set(parts)) > 1), min(map(len, folders)))
    names = ["/".join(path.split("/")[common:]).removesuffix(".tar") for path in paths]
    return replace(table, paths=paths, names=names)


def table_of(
    path: str,
    members: Iterable[TarMember],
    *,
    digest: Callable[[], str],
    crcs: Mapping[int, int] | None = None,
    sizes: Mapping[int, tuple[int, int]] | None = None,
) -> ShardTable:
    """The table of one shard. ``digest`` is called after the last of its ``members``.

    ``crcs`` (crc32 of a file) and ``sizes`` (height and width of an image), by the file's offset, come from a reading
    of the contents; without them the shard counts as not indexed.

    Raises InputError where a key has two files of one extension and where no key has an image.
    """
    samples, without_image = _samples(path, members)
    numbers: dict[str, int] = {}
    files, letters, shapes = [], [], []
    for key, found in samples.items():
        letters.append(key.encode())
        image = next((found[extension] for extension in IMAGE_EXTENSIONS if extension in found), None)
        shapes.append((0, 0) if sizes is None or image is None else sizes[image.offset])
        for extension, member in found.items():
            number = numbers.setdefault(extension, len(numbers))
            files.append((number, member.offset // BLOCK, member.size, crcs[member.offset] if crcs else 0))
    return ShardTable(
        paths=[path],
        names=[""],
        digests=[digest()],
        indexed=np.array([crcs is not None]),
        extensions=list(numbers),
        first=np.array([0, len(samples)]),
        first_file=np.cumsum([0, *map(len, samples.values())]),
        files=np.array(files, dtype=FILE),
        first_letter=np.cumsum([0, *map(len, letters)]),
        keys=np.frombuffer(b"".join(letters), dtype=np.uint8),
        sizes=np.array(shapes, dtype=np.int32),
        without_image=without_image,
    )


def _samples(path: str, members: Iterable[TarMember]) -> tuple[dict[str, dict[str, TarMember]], int]:
    """(key -> extension -> file of all keys that are samples, number of the others)."""
    samples: dict[str, dict[str, TarMember]] = {}
    for member in members:
        key, extension = split_name(member.name)
        if not key:
            continue
        files = samples.setdefault(key, {})
        if extension in files:
            raise InputError(
                f"{path} holds '{printable(key)}.{printable(extension)}' twice; every key must be unique within a shard"
            )
        files[extension] = member
    kept = {key: files for key, files in samples.items() if not files.keys().isdisjoint(SAMPLE_EXTENSIONS)}
    if not kept:
        raise InputError(
            f"{path} holds no images ({' '.join('.' + e for e in IMAGE_EXTENSIONS)}); expected members like "
            "000000000.jpg and 000000000.txt"
        )
    return kept, len(samples) - len(kept)


def printable(text: str) -> str:
    """The text for a message; with escapes where it holds control characters, which a foreign tar may put into keys."""
    return text if text.isprintable() else repr(text)[1:-1]


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: 'a/0001.seg.png' -> ('a/0001', 'seg.png'); ('', '') for hidden files and names without dot."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()
