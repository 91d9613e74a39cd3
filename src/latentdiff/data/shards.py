"""WebDataset shards on disk: writing them with an index, opening them, verifying them.

Layout as img2dataset writes it: ``00000.tar`` with ``000000000.jpg/.txt/.json``, optional ``.cls`` and ``.seg.png``;
beside the tars an ``index.json`` with each shard's samples, bytes and sha256.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from latentdiff.config.errors import InputError
from latentdiff.data.shard_set import ShardSet, ShardTable

INDEX_NAME = "index.json"
_INDEX_VERSION = 1


@dataclass(frozen=True)
class ShardInfo:
    """One shard's entry in the index."""

    name: str
    samples: int
    bytes: int
    sha256: str


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


def write_index(folder: Path, infos: Sequence[ShardInfo]) -> None:
    """Writes ``folder/index.json``."""
    with open(folder / INDEX_NAME, "w", encoding="utf-8") as file:
        json.dump({"version": _INDEX_VERSION, "shards": [asdict(info) for info in infos]}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def staged(dest: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes ``dest`` when the block ends well and vanishes otherwise.

    Raises InputError where ``dest`` is a file or a folder with something in it, before or after the block.
    """
    dest = Path(dest)
    _refuse_occupied(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    folder = dest.parent / f".{dest.name}.{uuid.uuid4().hex[:8]}.partial"
    folder.mkdir()
    try:
        yield folder
        _refuse_occupied(dest)
        os.rename(folder, dest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_occupied(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise InputError(f"{dest} exists already and is not empty; name another destination or remove it")


def sha256_of(path: str | Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def open_shards(urls: str | Path | Sequence[str | Path]) -> ShardSet:
    """Opens local shards: a folder (all its .tar), a pattern like ``a/{00000..00009}.tar`` or ``a/*.tar``, or a list.

    Reads the tar headers only. Where the folder has an index.json, names, sizes and sample counts must agree with it.

    Raises InputError, naming the file, for missing, damaged, imageless or unexpected shards.
    """
    paths = expand_urls(urls)
    indices = {folder: read_index(folder) for folder in {os.path.dirname(path) for path in paths}}
    digests = [_check_listed(path, indices[os.path.dirname(path)]) for path in paths]
    parent = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.path.relpath(path, parent).removesuffix(".tar") for path in paths]
    shards = ShardSet(ShardTable(paths, names), digests)
    for path, count in zip(paths, shards.samples_per_shard()):
        info = indices[os.path.dirname(path)].get(os.path.basename(path))
        if info is not None and info.samples != count:
            raise InputError(
                f"{path} holds {count} samples, its {INDEX_NAME} says {info.samples}; make the shard again"
            )
    return shards


def expand_urls(urls: str | Path | Sequence[str | Path]) -> list[str]:
    """Absolute paths of the shards that ``urls`` names, in order; see ``open_shards``."""
    patterns = [urls] if isinstance(urls, (str, Path)) else list(urls)
    paths = [path for pattern in patterns for path in _expand(str(pattern))]
    if not paths:
        raise InputError("no shards were named; expected a folder, a pattern like data/{00000..00009}.tar, or a list")
    repeated = sorted({path for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
    if repeated:
        raise InputError(f"{repeated[0]} is named twice; name every shard once")
    return paths


def _expand(pattern: str) -> list[str]:
    if "://" in pattern or pattern.startswith("pipe:"):
        raise InputError(f"'{pattern}' is not a local path; only local shards can be read, so copy them here first")
    if os.path.isdir(pattern):
        found = sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar")))
        if not found:
            raise InputError(
                f"the folder {pattern} holds no .tar; make shards with 'latentdiff shards make FOLDER DEST'"
            )
        _check_complete(os.path.abspath(pattern), {os.path.basename(path) for path in found})
        return [os.path.abspath(path) for path in found]
    try:
        names = [pattern] if os.path.isfile(pattern) else list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise InputError(
            f"the braces in '{pattern}' do not match; expected for example data/{{00000..00009}}.tar"
        ) from error
    found = [path for name in names for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    missing = [path for path in found if not os.path.isfile(path)]
    if missing or not found:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"shard {missing[0] if missing else pattern} does not exist{more}; check the path or pattern")
    return [os.path.abspath(path) for path in found]


def read_index(folder: str | Path) -> dict[str, ShardInfo]:
    """The folder's index by shard name; empty where it has none."""
    path = os.path.join(folder, INDEX_NAME)
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            infos = [ShardInfo(**entry) for entry in json.load(file)["shards"]]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not an index of shards ({error}); remove it or make the shards again") from error
    return {info.name: info for info in infos}


def _check_complete(folder: str, present: set[str]) -> None:
    missing = sorted(read_index(folder).keys() - present)
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} shards that its {INDEX_NAME} lists, first {missing[0]}")


def _check_listed(path: str, index: dict[str, ShardInfo]) -> str:
    name, size = os.path.basename(path), os.path.getsize(path)
    if not index:
        return f"{name} {size}"
    info = index.get(name)
    if info is None:
        raise InputError(f"{path} is not listed in the {INDEX_NAME} beside it; remove the one or the other")
    if info.bytes != size:
        raise InputError(f"{path} has {size} bytes, its {INDEX_NAME} says {info.bytes}; make or fetch this shard again")
    return info.sha256


def verify_shards(urls: str | Path | Sequence[str | Path]) -> ShardSet:
    """``open_shards``, and the sha256 of every shard that has an index; InputError for the first that differs."""
    shards = open_shards(urls)
    for path in shards.table.paths:
        info = read_index(os.path.dirname(path)).get(os.path.basename(path))
        if info is not None and sha256_of(path) != info.sha256:
            raise InputError(
                f"the content of {path} differs from the sha256 in its {INDEX_NAME}; fetch this shard again"
            )
    return shards
