"""Which shards a folder, a pattern or a list names, on disk or behind a URL."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from latentdiff.config.errors import InputError

PROTOCOLS = ("s3", "gs", "https", "http", "hf")
Listing = Callable[[str], Sequence[str] | None]
"""Folder or URL of one -> the names of the shards that its index lists; None where it has no index."""


def is_remote(path: str) -> bool:
    return "://" in path


def expand_urls(urls: str | Path | Sequence[str | Path], listing: Listing = lambda folder: None) -> list[str]:
    """Absolute paths, or URLs, of the shards that ``urls`` names, in order.

    A folder means all its shards, a pattern has braces or, in the file name, wildcards; in a folder with an index
    wildcards stand for what it lists, be it there or not.

    Raises InputError for shards that are neither there nor listed, for one named twice, for one that a folder's index
    does not list, and for protocols that are not supported and URLs with a query.
    """
    patterns = [urls] if isinstance(urls, (str, Path)) else list(urls)
    paths = [path for pattern in patterns for path in _expand(str(pattern), listing)]
    if not paths:
        raise InputError("no shards were named; expected a folder, a pattern like data/{00000..00009}.tar, or a list")
    if len(set(paths)) < len(paths):
        repeated = min(path for path in paths if paths.count(path) > 1)
        raise InputError(f"{repeated} is named twice; name every shard once")
    return paths


def _expand(pattern: str, listing: Listing) -> list[str]:
    _check_protocol(pattern)
    try:
        names = [pattern] if os.path.exists(pattern) else list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise InputError(
            f"the braces in '{pattern}' do not match; expected for example data/{{00000..00009}}.tar"
        ) from error
    found = [path for name in names for path in _shards(name, listing)]
    listed = {folder: listing(folder) for folder in dict.fromkeys(map(os.path.dirname, found))}
    known = {os.path.join(folder, name) for folder, names in listed.items() for name in names or ()}
    unlisted = [path for path in found if path not in known]
    missing = [path for path in unlisted if not is_remote(path) and not os.path.isfile(path)]
    if missing or not found:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"shard {missing[0] if missing else pattern} does not exist{more}; check the path or pattern")
    for path in unlisted:
        if listed[os.path.dirname(path)] is not None:
            folder = os.path.dirname(path)
            raise InputError(
                f"{path} is not listed in the index beside it; run 'latentdiff shards index {folder}', or remove it"
            )
    return found


def _shards(name: str, listing: Listing) -> list[str]:
    """The shards of one name without braces."""
    if not is_remote(name):
        name = os.path.abspath(name)
    folder, base = os.path.split(name.rstrip("/"))
    if os.path.isdir(name) or (is_remote(name) and not base.endswith(".tar")):
        return _all_in(name.rstrip("/"), listing)
    if glob.has_magic(base) and not os.path.exists(name):
        present = [] if is_remote(name) else glob.glob(name)
        listed = [os.path.join(folder, entry) for entry in listing(folder) or () if fnmatchcase(entry, base)]
        return sorted({*present, *listed})
    return [name]


def _all_in(folder: str, listing: Listing) -> list[str]:
    listed = listing(folder)
    present = sorted(glob.glob(os.path.join(glob.escape(folder), "*.tar"))) if not is_remote(folder) else []
    if not listed and not present:
        raise InputError(f"the folder {folder} holds no .tar; make shards with 'latentdiff shards make SOURCE DEST'")
    return sorted({*present, *(os.path.join(folder, name) for name in listed or ())})


def _check_protocol(pattern: str) -> None:
    """Only these are opened: a chain of protocols or a command could do anything."""
    protocol = None if os.path.exists(pattern) else re.match(r"\s*([\w+.-]+):", pattern)
    named = protocol[1] if protocol else ""
    if pattern.lstrip().startswith("|") or "::" in pattern:
        named = "a command or a chain of protocols"
    if is_remote(pattern) and re.search(r"\.tar\?|\?.*=", pattern):
        raise InputError(
            f"{pattern.partition('?')[0]} is followed by a query; URLs signed for one file are not supported, as the "
            "index beside it could not be read: name it by s3://, gs:// or hf:// and give credentials"
        )
    if named and named not in PROTOCOLS:
        supported = " ".join(f"{protocol}://" for protocol in PROTOCOLS)
        raise InputError(f"'{pattern}': {named} is not supported; expected a local path or one of {supported}")
