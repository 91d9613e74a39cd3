"""What a run's metrics.jsonl says of one number, also while the run writes it."""

from __future__ import annotations

import json
import math
from pathlib import Path

Curve = list[tuple[int, float]]
"""(images seen, value), in the order of the run."""


def lines_of(run_dir: Path) -> list[dict]:
    """Those that are whole; none where the run has written none."""
    try:
        content = (run_dir / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in content.splitlines(keepends=True):
        try:
            found.append(json.loads(line) if line.endswith(b"\n") else None)
        except ValueError:  # a killed run's last words
            continue
    return [line for line in found if isinstance(line, dict) and "images_seen" in line]


def curve_of(lines: list[dict], name: str) -> Curve:
    """Without values that were not finite."""
    points = ((line["images_seen"], line.get(name)) for line in lines)
    return [(images, value) for images, value in points if _is_finite(value)]


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
