"""WebDataset shards on disk: writing them with an index, opening them, verifying them.

Layout as img2dataset writes it: ``00000.tar`` with ``000000000.jpg/.txt/.json``, optional ``.cls`` and ``.seg.png``;
beside the tars their index (``data/index.py``).
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.damage import (
    DamagedShardsError,
    ShardDamage,
    damage_by_bytes,
    damage_by_fetching,
    damage_by_sha256,
)
from latentdiff.data.index import Index, ShardInfo, read_index, write_index
from latentdiff.data.remote import RemoteShards, ShardCache
from latentdiff.data.shard_files import ShardFiles, open_local, sha256_of
from latentdiff.data.shard_names import expand_urls, is_remote
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shard_table import ShardTable, concatenate, placed, table_of
from latentdiff.data.tar_scan import scan_tar
from latentdiff.data.verified import Verified
from latentdiff.data.worker import available_cores

_log = logging.getLogger(__name__)

# --- writing ---------------------------------------------------------------------------------------------------------


def write_shards(
    samples: Iterable[dict],
    dest: str | Path,
    samples_per_shard: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> list[ShardInfo]:
    """Writes samples to ``dest/00000.tar`` ... and ``dest/index.json``; equal samples give equal bytes.

    A sample maps extensions to bytes, str, int or JSON-able objects: ``{"jpg": b"...", "txt": "a cat", "cls": 3}``;
    its optional ``__key__`` replaces the running number. ``progress`` is called with the number of samples written so
    far. ``dest`` appears at the end, complete; until then all goes to a temporary folder beside it.

    Raises InputError where ``dest`` exists and is not empty, or there are no samples.
    """
    if not 1 <= samples_per_shard <= 10_000:
        raise InputError(f"samples_per_shard must be 1 to 10000, got {samples_per_shard}")
    with staged(dest) as folder:
        infos: list[ShardInfo] = []
        written = 0
        iterator = iter(samples)
        while chunk := list(islice(iterator, samples_per_shard)):
            infos.append(write_shard(folder, len(infos), chunk))
            written += len(chunk)
            if progress is not None:
                progress(written)
        if not infos:
            raise InputError(f"there are no samples to write to {dest}")
        write_index(folder, infos)
    return infos


def write_shard(folder: Path, number: int, samples: Iterable[dict]) -> ShardInfo:
    """Writes ``folder/<number>.tar``; times, owners and modes are constant."""
    path = folder / f"{number:05d}.tar"
    count = 0
    with open(path, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for count, sample in enumerate(samples, start=1):
                key = sample.get("__key__", f"{number:05d}{count - 1:04d}")
                for extension, value in sample.items():
                    if extension != "__key__":
                        _add(tar, f"{key}.{extension}", _encode(value))
        file.flush()
        os.fsync(file.fileno())
    return ShardInfo(path.name, count, path.stat().st_size, sha256_of(path))


@contextmanager
def staged(dest: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes ``dest`` when the block ends well and vanishes otherwise.

    Where ``dest`` is a link, what it leads to is meant. Raises InputError as ``refuse_occupied`` does, before or after
    the block.
    """
    dest = Path(os.path.realpath(dest))
    refuse_occupied(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    folder = dest.parent / f".{dest.name}.{uuid.uuid4().hex[:8]}.partial"
    folder.mkdir()
    try:
        yield folder
        refuse_occupied(dest)
        os.rename(folder, dest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_occupied(dest: Path) -> None:
    """Raises InputError where ``dest`` is a file, a folder with something in it, or what no new folder can replace: a
    link, a mount point, the working directory."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise InputError(f"{dest} exists already and is not empty; name another destination or remove it")
    if dest.is_symlink() or (dest.exists() and (dest.samefile(Path.cwd()) or os.path.ismount(dest))):
        raise InputError(f"{dest} is a link, a mount point or the working directory; name a new folder")


def _encode(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


# --- opening ---------------------------------------------------------------------------------------------------------


def open_shards(
    urls: str | Path | Sequence[str | Path], *, damaged: str = "stop", cache: ShardCache | None = None
) -> ShardSet:
    """Opens shards: a folder (all of them), a pattern like ``a/{00000..00009}.tar`` or ``a/*.tar``, or a list; paths or
    URLs (``s3 gs http https hf``), whose shards come through ``cache`` (default: ``ShardCache()``) when they are read.

    A folder with an index is opened by that alone, and its shards' bytes must agree with it. Without one the tar
    headers are read, of local shards only. With ``damaged`` "skip" the shards must have an index; then those that are
    missing or have other bytes stay in the set: ``ShardSet.broken`` marks what they have lost, reading it is a
    BrokenSampleError, and a warning names each.

    Raises InputError for missing, damaged, imageless or unexpected shards, DamagedShardsError where the index tells.
    """
    check_damaged(damaged)
    table, infos, opener = _table(urls, cache)
    tolerant = damaged == "skip"
    if tolerant and not table.indexed.all():
        path = table.paths[int(np.argmin(table.indexed))]
        raise InputError(
            f"{path} has no index, and data.damaged=skip needs one to know what is missing; "
            f"run 'latentdiff shards index {os.path.dirname(path)}' on undamaged shards"
        )
    lost = _lost(table, infos, tolerant)
    return ShardSet(table, ShardFiles(table.paths, tolerant=tolerant, open_shard=opener), lost=lost)


def check_damaged(damaged: str) -> None:
    """Raises InputError unless it is "stop" or "skip"."""
    if damaged not in ("stop", "skip"):
        raise InputError(f"data.damaged: expected stop or skip, got {damaged!r}")


def _table(
    urls: str | Path | Sequence[str | Path], cache: ShardCache | None
) -> tuple[ShardTable, dict[str, ShardInfo], Callable[[str], int]]:
    """(table, entry of each indexed shard by its path, what opens a path or URL)."""
    indexes: dict[str, Index | None] = {}

    def index(folder: str) -> Index | None:
        if folder not in indexes:
            indexes[folder] = (cache or ShardCache()).read_index(folder) if is_remote(folder) else read_index(folder)
        return indexes[folder]

    def listing(folder: str) -> list[str] | None:
        found = index(folder)
        return None if found is None else [info.name for info in found.shards]

    paths = expand_urls(urls, listing)
    infos: dict[str, ShardInfo] = {}
    tables = []
    for folder, group in groupby(paths, os.path.dirname):
        members, found = list(group), index(folder)
        if found is None:
            tables += [_scanned(path) for path in members]
            continue
        places = {info.name: place for place, info in enumerate(found.shards)}
        chosen = [places[os.path.basename(path)] for path in members]
        tables.append(found.table.take(chosen))
        infos |= {path: found.shards[place] for path, place in zip(members, chosen)}
    remote = {path: info for path, info in infos.items() if is_remote(path)}
    opener = RemoteShards(cache or ShardCache(), remote) if remote else open_local
    return placed(concatenate(tables), paths), infos, opener


def _scanned(path: str) -> ShardTable:
    digest = f"{os.path.basename(path)} {os.path.getsize(path)}"
    return table_of(path, scan_tar(path), digest=lambda: digest)


def _lost(table: ShardTable, infos: dict[str, ShardInfo], tolerant: bool) -> np.ndarray | None:
    damaged = {}
    for shard, path in enumerate(table.paths):
        if path in infos and not is_remote(path) and (damage := damage_by_bytes(table, shard, infos[path])):
            damaged[shard] = damage
    if damaged and not tolerant:
        raise DamagedShardsError(list(damaged.values()))
    if not damaged:
        return None
    lost = np.zeros(len(table), dtype=bool)
    for shard, damage in damaged.items():
        _log.warning("%s; the others are skipped", damage)
        lost[table.first[shard] : table.first[shard + 1]] = damage.lost
    return lost


# --- verifying -------------------------------------------------------------------------------------------------------


def verify_shards(
    urls: str | Path | Sequence[str | Path],
    *,
    cache: ShardCache | None = None,
    verified: Verified | None = None,
    most_bytes: int | None = None,
    fetch: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ShardSet:
    """Opens shards after holding every byte of the local ones that have an index against their sha256.

    Shards that ``verified`` remembers are not read again, and none is where they are more than ``most_bytes`` in all,
    as the log says then. Remote shards are verified when they are fetched; with ``fetch`` all of them are, now, and
    what lies of them in the cache is read again. ``progress`` is called with the bytes done and in all.

    Raises DamagedShardsError with every shard that differs, and InputError as ``open_shards`` does.
    """
    table, infos, opener = _table(urls, cache)
    held = [shard for shard, path in enumerate(table.paths) if path in infos and (fetch or not is_remote(path))]
    total, done = sum(infos[table.paths[shard]].bytes for shard in held), 0
    if most_bytes is not None and total > most_bytes:
        _log.info("%d GiB of shards are not read through beforehand; each read is checked by its crc32", total >> 30)
        return open_shards(urls, cache=cache)

    def look(shard: int) -> ShardDamage | None:
        expected = infos[table.paths[shard]]
        if is_remote(table.paths[shard]):
            return damage_by_fetching(table, shard, expected, opener)
        return damage_by_bytes(table, shard, expected) or damage_by_sha256(table, shard, expected, verified)

    damaged = []
    with ThreadPoolExecutor(available_cores()) as pool:
        for shard, damage in zip(held, pool.map(look, held)):
            damaged += [damage] if damage else []
            done += infos[table.paths[shard]].bytes
            if progress is not None:
                progress(done, total)
    if damaged:
        raise DamagedShardsError(damaged)
    return ShardSet(table, ShardFiles(table.paths, open_shard=opener))
