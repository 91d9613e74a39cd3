"""The real programs in processes of their own, and what their records say."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(script: str, *overrides: str) -> None:
    """Stops the benchmark with the program's own words where it fails."""
    done = attempt(script, *overrides)
    if done.returncode:
        sys.exit(f"{script} {' '.join(overrides)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def attempt(script: str, *overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def records(run_dir: Path) -> list[dict]:
    """The lines of a training's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def batches_per_second(run_dir: Path) -> float:
    """Of a training's records but the first, which warms up: the mean time of a batch."""
    lines = records(run_dir)
    seconds = [1 / line["images_per_second"] for line in lines if "images_per_second" in line][1:]
    return 1 / (statistics.mean(seconds) * lines[-1]["images_seen"] / lines[-1]["batches_seen"])


def training_seconds(run_dir: Path) -> float:
    """Spent in training batches: without start, validations and checkpoints."""
    seconds, before = 0.0, 0
    for line in records(run_dir):
        if "images_per_second" in line:
            seconds += (line["images_seen"] - before) / line["images_per_second"]
            before = line["images_seen"]
    return seconds
