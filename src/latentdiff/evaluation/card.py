"""The protocol card: everything that a number depends on, kept beside it. A number without a card is not a result."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

import latentdiff
from latentdiff.checkpoint import store
from latentdiff.evaluation.engine import image_seed

SCHEMA = 1
ROUNDING = "round((clamp(x, -1, 1) + 1) * 127.5)"
SEED_RULE = "image i: seed * 2^32 + i"
PACKAGES = ("torch", "torchmetrics", "torch-fidelity", "numpy", "pillow", "open-clip-torch")


@runtime_checkable
class Described(Protocol):
    """A part that says what its results depend on."""

    def describe(self) -> dict[str, object]: ...


def protocol_card(
    *,
    checkpoint: str | Path,
    weights: str,
    generate: Described,
    metrics: Mapping[str, object],
    data: str,
    num_images: int,
    batch_size: int,
    seed: int,
    image_size: int,
    wall_seconds: float,
    world_size: int = 1,
    reference: str | None = None,
) -> dict[str, object]:
    """A JSON-ready card of one evaluation. Call it on every rank: describing a metric may gather.

    Args:
        checkpoint: directory of what was evaluated.
        weights: "ema" or "model".
        generate: the pipeline.
        data: what the conditions were, e.g. the shard pattern and split.
        reference: what the real images were; None: those of ``data``.
    """
    manifest = store.read_manifest(checkpoint)
    return {
        "schema": SCHEMA,
        "model": {
            "checkpoint": str(checkpoint),
            "digest": manifest.digest,
            "kind": manifest.kind,
            "weights": weights,
            **manifest.counters,
            "first_stage": manifest.first_stage,
        },
        "generation": generate.describe(),
        "seeds": {"seed": seed, "rule": SEED_RULE, "first": image_seed(seed, 0), "count": num_images},
        "samples": {
            "conditions": data,
            "count": num_images,
            "resolution": image_size,
            "to_uint8": ROUNDING,
            "batch_size": batch_size,
        },
        "reference": reference or data,
        "metrics": {
            name: {"class": type(metric).__name__, **(metric.describe() if isinstance(metric, Described) else {})}
            for name, metric in metrics.items()
        },
        "environment": environment(world_size),
        "wall_seconds": round(wall_seconds, 3),
    }


def environment(world_size: int) -> dict[str, object]:
    """Versions, source revision and hardware of this process."""
    return {
        "latentdiff": latentdiff.__version__,
        "revision": source_revision(Path(latentdiff.__file__).parent),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "machine": platform.machine(),
        "world_size": world_size,
    }


def source_revision(package: Path) -> str | None:
    """Commit of the repository whose ``src/`` holds ``package``, "+changes" where files differ; None outside one."""
    root = package.parent.parent
    if package.parent.name != "src" or not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *command: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
