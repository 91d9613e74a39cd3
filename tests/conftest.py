"""What every test has."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keeps what is remembered of shards out of the user's own cache, in child processes too."""
    before = os.environ.get("LATENTDIFF_CACHE")
    os.environ["LATENTDIFF_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LATENTDIFF_CACHE"]
    else:
        os.environ["LATENTDIFF_CACHE"] = before


@dataclass(frozen=True)
class WandbRun:
    """What the files of one W&B run hold, those of all processes that wrote it, in their order."""

    rows: list[dict[str, Any]]
    """Of the history; a picture or table is the dictionary that W&B made of it."""
    summary: dict[str, Any]
    config: dict[str, Any]
    artifacts: list[Any]
    runs: list[Any]
    """One record per file."""
    axes: dict[str, str]
    """Pattern of names -> the name that they are drawn against."""


@pytest.fixture(scope="session")
def read_wandb() -> Callable[[Path], WandbRun]:
    """Run directory -> its W&B run, read without W&B's own reader, which not all versions have."""

    def read(run_dir: Path) -> WandbRun:
        from wandb.proto import wandb_internal_pb2

        found = WandbRun([], {}, {}, [], [], {})
        for file in sorted(run_dir.glob("wandb/*run-*/run-*.wandb")):
            for data in _wandb_records(file.read_bytes()):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                if record.HasField("history"):
                    found.rows.append(_nested(record.history.item))
                for part, values in ((record.summary, found.summary), (record.config, found.config)):
                    for name, value in _nested(part.update).items():
                        old = values.get(name)
                        values[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
                if record.HasField("metric") and record.metric.step_metric:
                    found.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
                for name, records in (("artifact", found.artifacts), ("run", found.runs)):
                    records.extend([getattr(record, name)] if record.HasField(name) else [])
        return found

    return read


def _nested(items: Iterable[Any]) -> dict[str, Any]:
    """W&B's items: a key, or the keys of nested dictionaries, and a value as JSON."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = found
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format, after W&B's header of 7 bytes: blocks of 32 KiB, each piece with crc, length and type."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""
