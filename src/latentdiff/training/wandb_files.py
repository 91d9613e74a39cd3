"""What W&B has written of a run: the rows of its history, from the ``.wandb`` files of all processes that wrote it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

HEADER, BLOCK, PIECE = 7, 32 * 1024, 7
"""Bytes before the first block, of a block, and before each piece of a record."""
WHOLE, LAST = 1, 4
"""Kinds of pieces that end a record; 2 and 3 are its first and middle ones."""


def recorded(folder: Path, run_id: str) -> Iterator[dict[str, object]]:
    """The rows, process by process in the order in which these began. A picture or table is there by its name, with
    some value.

    Args:
        folder: ``wandb`` of a run directory.
    """
    from wandb.proto import wandb_internal_pb2

    files = folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb")
    for path in sorted(files, key=lambda path: path.parent.name.removeprefix("offline-")):
        for data in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                items = record.history.item
                yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format: pieces do not cross blocks, each has crc32 (4 bytes), length (2) and kind (1). A record
    that a killed process left unfinished ends the file."""
    position, record = HEADER, b""
    while position + PIECE <= len(data):
        if (left := BLOCK - position % BLOCK) < PIECE:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)
        end = position + PIECE + size
        if end > len(data) or kind == 0:
            return
        record += data[position + PIECE : end]
        position = end
        if kind in (WHOLE, LAST):
            yield record
            record = b""
