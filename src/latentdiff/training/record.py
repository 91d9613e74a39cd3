"""Reads ``metrics.jsonl``, the record of a training that the loggers repeat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

FILE = "metrics.jsonl"
"""In the run directory."""
COUNTERS = ("batches_seen", "images_seen")


def lines_until(run_dir: Path, batches_seen: int) -> Iterator[tuple[dict[str, int], dict[str, float]]]:
    """(counters, values) of the lines up to there. What is no such line, and a value that was not finite, is left out;
    without a file there are none."""
    file = run_dir / FILE
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
            counters = {name: values.pop(name) for name in COUNTERS}
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        if counters["batches_seen"] <= batches_seen:
            yield counters, {name: value for name, value in values.items() if value is not None}
