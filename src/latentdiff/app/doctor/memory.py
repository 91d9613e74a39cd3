"""Memory of the machine, and what a container or a job of a cluster may have of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 2**60
"""Version 1 writes a number above this where there is no limit."""
FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of version 2 and 1 of control groups: folder below ``CGROUPS``; files of limit and use; entry of ``memory.stat`` with
the bytes that are given back when they are needed."""


def total_memory() -> int | None:
    """Bytes that this process can have at most; None where the system does not say."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return min([machine, *(limit for limit, _ in _limits())])


def available_memory() -> int | None:
    """Bytes that a new process can have; all of them where the system (macOS) does not tell them apart."""
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
    except OSError:
        return total_memory()
    kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return min([kilobytes["MemAvailable"] * 1024, *(max(0, limit - used) for limit, used in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """(bytes at most, bytes in use) of every control group with a limit that this process is in."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    own = {controllers: path.strip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    for controller, limit, used, idle in FILES:
        root = CGROUPS / controller
        if (path := own.get(controller)) is None:
            continue
        for folder in (root / path, *(root / path).parents):
            try:
                most = (folder / limit).read_text().strip()
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                if most != "max" and int(most) < UNLIMITED:
                    yield int(most), int((folder / used).read_text()) - int(stat.get(idle, 0))
            except OSError:  # the root of version 2 has no such files
                pass
            if folder == root:
                break
