"""Where the members of a tar lie, read from its headers alone and without forgiving anything.

``tarfile`` and webdataset take a damaged header for the end of the archive, so that a damaged shard silently loses
samples; this reader checks every header's checksum and the end mark.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from latentdiff.config.errors import InputError

BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_MAX_EXTENDED_HEADER = 1 << 20
_MOST_BYTES = 1 << 30
_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")
_SIZE = re.compile(r"\d{1,18}")


class TarMember(NamedTuple):
    """A regular file in a tar: ``size`` bytes from byte ``offset``."""

    name: str
    offset: int
    size: int


def scan_tar(path: str) -> Iterator[TarMember]:
    """The regular files of the uncompressed tar at ``path`` in their order; nothing is extracted.

    Raises InputError where the file is no tar, is cut off, has a damaged header, also an extended one, or a member of
    more than 1 GiB.
    """
    with open(path, "rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        yield from _scan(file.fileno(), path, total)


def _scan(fd: int, path: str, total: int) -> Iterator[TarMember]:
    position, long_name, long_size = 0, None, None
    while True:
        header = os.pread(fd, BLOCK, position)
        if len(header) < BLOCK:
            raise _cut_off(path, total, position)
        if not any(header):
            _check_tail(fd, path, position, total)
            return
        kind, size = _kind_and_size(header, path, position)
        size = size if long_size is None or kind not in _REGULAR else long_size
        if kind in _REGULAR and size > _MOST_BYTES:
            raise InputError(
                f"{path}: the member at byte {position} claims {size} bytes; expected at most {_MOST_BYTES}; remove it"
            )
        data = position + BLOCK
        position = data + -(-size // BLOCK) * BLOCK
        if position > total:
            raise _cut_off(path, total, position)
        if kind == b"x":
            records = _pax_records(_extended(fd, path, data, size), path, data)
            long_name = records.get("path", long_name)
            long_size = int(records["size"]) if "size" in records else long_size
        elif kind == b"L":
            long_name = _extended(fd, path, data, size).split(b"\0")[0].decode("utf-8", "replace")
        elif kind in _REGULAR:
            yield TarMember(long_name or _name(header), data, size)
        if kind not in (b"x", b"L", b"K"):
            long_name, long_size = None, None


def _kind_and_size(header: bytes, path: str, position: int) -> tuple[bytes, int]:
    try:
        stored, size = tarfile.nti(header[148:156]), tarfile.nti(header[124:136])
    except tarfile.HeaderError:
        stored, size = -1, -1
    if stored != 256 + sum(header[:148]) + sum(header[156:]) or size < 0:
        what = (
            "not an uncompressed tar"
            if position == 0
            else f"damaged: the header at byte {position} is not a tar header"
        )
        raise InputError(f"{path} is {what}; make or fetch this shard again")
    return header[156:157], size


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _extended(fd: int, path: str, offset: int, size: int) -> bytes:
    if size > _MAX_EXTENDED_HEADER:
        raise _bad_extension(path, offset, f"has {size} bytes")
    return os.pread(fd, size, offset)


def _pax_records(data: bytes, path: str, offset: int) -> dict[str, str]:
    """POSIX.1-2001 records: ``length key=value newline``, the length counting itself; a ``size`` has digits alone."""
    records: dict[str, str] = {}
    data, position = data.rstrip(b"\0"), 0
    while position < len(data):
        start = _RECORD.match(data, position)
        stop = position + int(start[1]) if start else 0
        if start is None or stop <= start.end() or data[stop - 1 : stop] != b"\n":
            raise _bad_extension(path, offset, f"has no record at its byte {position}")
        records[start[2].decode("utf-8", "replace")] = data[start.end() : stop - 1].decode("utf-8", "replace")
        position = stop
    if not _SIZE.fullmatch(records.get("size", "0")):
        raise _bad_extension(path, offset, f"gives the size {records['size'][:20]!r}")
    return records


def _bad_extension(path: str, offset: int, what: str) -> InputError:
    return InputError(f"{path} is damaged: an extended header at byte {offset} {what}; make or fetch this shard again")


def _check_tail(fd: int, path: str, position: int, total: int) -> None:
    """After the end mark a tar holds zeros only; anything else means that a header was wiped out."""
    for start in range(position, total, 1 << 20):
        if any(os.pread(fd, 1 << 20, start)):
            raise InputError(
                f"{path} is damaged: it ends at byte {position} with data after that; fetch this shard again"
            )


def _cut_off(path: str, total: int, needed: int) -> InputError:
    what = "empty" if total == 0 else f"cut off: it has {total} bytes and goes on at byte {needed}"
    return InputError(f"{path} is {what}; make or fetch this shard again")
