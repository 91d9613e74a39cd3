"""The index beside a folder's shards: what each holds, so that opening them reads no tar.

``index.json`` has each shard's samples, bytes and sha256, and the sha256 of ``index.npz``, whose arrays say where every
file of every sample lies, its crc32, and the size of every image.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from latentdiff import durable
from latentdiff.config.errors import InputError
from latentdiff.data.parallel import mapped
from latentdiff.data.shard_contents import scan_contents
from latentdiff.data.shard_files import sha256_of
from latentdiff.data.shard_names import expand_urls, is_remote
from latentdiff.data.shard_table import FILE, ShardTable, concatenate
from latentdiff.data.worker import available_cores

INDEX_NAME = "index.json"
TABLE_NAME = "index.npz"
_VERSION = 2
_ONE_PROCESS = 16 << 20
"""Bytes up to which starting more processes does not pay."""
_ARRAYS = {
    "first": np.dtype("<i8"),
    "first_file": np.dtype("<i8"),
    "files": FILE,
    "first_letter": np.dtype("<i8"),
    "keys": np.dtype("u1"),
    "sizes": np.dtype("<i4"),
}


@dataclass(frozen=True)
class ShardInfo:
    """One shard's entry in the index."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What ``read_index`` found; the paths of ``table`` are the shards' names."""

    shards: list[ShardInfo]
    table: ShardTable


@dataclass
class IndexSummary:
    """What ``index_shards`` has indexed."""

    shards: list[ShardInfo] = field(default_factory=list)
    without_image: int = 0
    """Keys that have no image; they are no samples."""
    unreadable: int = 0
    """Samples without an image whose header can be read."""


def index_shards(
    urls: str | Path | Sequence[str | Path],
    *,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IndexSummary:
    """Writes the index of local shards, a folder, a pattern or a list; one that is there is replaced.

    One pass over the bytes, by ``processes`` (default: all cores). ``progress`` is called with the numbers of shards
    done and in all. Other files beside the shards, like img2dataset's .parquet and .json, are left alone.

    Raises InputError that names every damaged shard, no index is written then, where a folder has further shards, which
    its index would not list, and where it cannot be written to.
    """
    if processes is not None and processes < 1:
        raise InputError(f"expected at least 1 process, got {processes}")
    paths = expand_urls(urls)
    if remote := next(filter(is_remote, paths), None):
        raise InputError(f"{remote} cannot be indexed from here; index the shards where they lie and upload the index")
    _check_whole(paths)
    tables: list[ShardTable] = []
    faults: list[str] = []
    for done, result in enumerate(_mapped(scan_contents, paths, processes), start=1):
        if isinstance(result, ShardTable):
            tables.append(result)
        else:
            faults.append(result)
        if progress is not None:
            progress(done, len(paths))
    if faults:
        raise InputError("\n".join(faults))
    summary = IndexSummary()
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        inside = [table for table in tables if os.path.dirname(table.paths[0]) == folder]
        try:
            summary.shards += _write(folder, inside)
        except OSError as error:
            raise InputError(
                f"the index of {folder} cannot be written there ({error.strerror}); link or copy its shards to a "
                "folder of your own"
            ) from error
    summary.without_image = sum(table.without_image for table in tables)
    summary.unreadable = sum(int((table.sizes == 0).any(axis=1).sum()) for table in tables)
    return summary


def _check_whole(paths: Sequence[str]) -> None:
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        if others := sorted(set(expand_urls(folder)) - set(paths)):
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            raise InputError(
                f"the index of {folder} is one for all its shards, and {others[0]}{more} would not be in it; "
                f"{_remake(folder)}"
            )


def write_index(folder: Path, infos: Sequence[ShardInfo]) -> None:
    """The index of freshly written shards. Raises InputError where one holds other bytes than its info says."""
    found = index_shards([folder / info.name for info in infos]).shards
    if changed := [info.name for info, now in zip(infos, found) if info.sha256 != now.sha256]:
        raise InputError(f"{folder / changed[0]} has changed since it was written; make the shards again")


def _mapped(
    function: Callable[[str], ShardTable | str], paths: list[str], processes: int | None
) -> Iterator[ShardTable | str]:
    processes = min(available_cores() if processes is None else processes, len(paths))
    return mapped(function, paths, 1 if sum(map(_bytes, paths)) <= _ONE_PROCESS else processes)


def _bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise InputError(f"shard {path} cannot be read ({error.strerror}); check the path or pattern") from error


# --- on disk ---------------------------------------------------------------------------------------------------------


def _write(folder: str, tables: list[ShardTable]) -> list[ShardInfo]:
    table = concatenate(tables)
    infos = [
        ShardInfo(os.path.basename(path), samples, os.path.getsize(path), digest)
        for path, samples, digest in zip(table.paths, np.diff(table.first).tolist(), table.digests)
    ]
    arrays = {name: getattr(table, name).astype(dtype, copy=False) for name, dtype in _ARRAYS.items()}
    file = io.BytesIO()
    np.savez(file, extensions=np.array(table.extensions, dtype=np.str_), **arrays)
    content = {
        "version": _VERSION,
        "table": {"name": TABLE_NAME, "sha256": hashlib.sha256(file.getbuffer()).hexdigest()},
        "shards": [asdict(info) for info in infos],
    }
    durable.put_file(os.path.join(folder, TABLE_NAME), file.getbuffer())
    durable.put_file(os.path.join(folder, INDEX_NAME), json.dumps(content, indent=1).encode())
    return infos


def read_index(folder: str | Path) -> Index | None:
    """The folder's index, None where it has none; raises as ``load_index``."""
    return load_index(folder, str(folder)) if os.path.exists(os.path.join(folder, INDEX_NAME)) else None


def load_index(folder: str | Path, shown: str) -> Index:
    """The index in the folder, which messages call ``shown``. Raises InputError where it is outdated, damaged or
    incomplete."""
    with open(os.path.join(folder, INDEX_NAME), "rb") as file:
        shards, sha256 = parse_index(file.read(), shown)
    path = os.path.join(folder, TABLE_NAME)
    if not os.path.isfile(path) or sha256_of(path) != sha256:
        raise InputError(f"{TABLE_NAME} in {shown} is missing or does not belong to its {INDEX_NAME}; {_remake(shown)}")
    try:
        return Index(shards, _table(path, shards))
    except (ValueError, KeyError, IndexError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{TABLE_NAME} in {shown} is not a table of samples ({error}); {_remake(shown)}") from error


def parse_index(content: bytes, folder: str) -> tuple[list[ShardInfo], str]:
    """(shards, sha256 of the table) of an ``index.json``. Raises InputError for anything else."""
    try:
        values = json.loads(content)
        version = values["version"]
        if version == _VERSION:
            shards = [ShardInfo(**entry) for entry in values["shards"]]
            sha256 = values["table"]["sha256"]
            if not all(map(_well_formed, shards)) or not _is_sha256(sha256) or not shards:
                raise ValueError("unexpected entries")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{INDEX_NAME} in {folder} is not an index of shards ({error!r}); {_remake(folder)}"
        ) from error
    if version != _VERSION:
        age = "an older" if version == 1 else "another"
        raise InputError(f"{INDEX_NAME} in {folder} was made by {age} version of latentdiff; {_remake(folder)}")
    return shards, sha256


def _well_formed(info: ShardInfo) -> bool:
    counts = all(isinstance(count, int) and count > 0 for count in (info.samples, info.bytes))
    return counts and _is_sha256(info.sha256) and bool(re.fullmatch(r"[^/\\\x00-\x1f\x7f]+\.tar", info.name))


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[0-9a-f]{64}", value))


def _remake(folder: str | Path) -> str:
    return f"run 'latentdiff shards index {folder}'"


def _table(path: str, shards: list[ShardInfo]) -> ShardTable:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in _ARRAYS}
        extensions = [str(extension) for extension in stored["extensions"]]
    for name, dtype in _ARRAYS.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != (2 if name == "sizes" else 1):
            raise ValueError(f"{name} is {arrays[name].dtype} of {arrays[name].ndim} dimensions")
    for name, divided in (("first", "sizes"), ("first_file", "files"), ("first_letter", "keys")):
        first = arrays[name]
        if first[0] != 0 or first[-1] != len(arrays[divided]) or (np.diff(first) < 0).any():
            raise ValueError(f"{name} does not divide {divided}")
    counts = [info.samples for info in shards]
    if np.diff(arrays["first"]).tolist() != counts or len(arrays["first_file"]) != sum(counts) + 1:
        raise ValueError(f"it holds other samples than its {INDEX_NAME}")
    if len(arrays["first_letter"]) != sum(counts) + 1 or (arrays["files"]["extension"] >= len(extensions)).any():
        raise ValueError("its arrays do not fit each other")
    names = [info.name for info in shards]
    return ShardTable(
        paths=names,
        names=names,
        digests=[info.sha256 for info in shards],
        indexed=np.ones(len(shards), dtype=bool),
        extensions=extensions,
        **arrays,
    )
