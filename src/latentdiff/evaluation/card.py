"""The protocol card: everything that a number depends on, kept beside it. A number without a card is not a result.

``protocol`` is what must be equal for two numbers to be comparable (``evaluation.compare``), ``model`` is whose numbers
they are, ``observed`` is what came out beside them; ``environment`` and ``wall_seconds`` are told and must not matter.
``config`` is the whole configuration, from which ``evaluate.py card=results.json`` repeats the evaluation.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

import latentdiff
from latentdiff.checkpoint import store
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import DIGEST, Measure, Work, image_seed
from latentdiff.metrics.reference import Reference
from latentdiff.types import Batch

SCHEMA = 2
SEED_RULE = "image i: base * 2^32 + i"
PREPARATION = "largest centred part of the shape, then bicubic with antialiasing (data.transforms.CoverCrop)"
"""Of the samples' own images, in conditions and references that the data give."""
PACKAGES = (
    *("torch", "torchvision", "torchmetrics", "torch-fidelity", "open-clip-torch", "transformers", "numpy", "pillow"),
    *("pytorch-lightning", "hydra-core", "wandb"),
)
CUT = "cut"
"""Column of ``cut_captions``."""
_PLACES = ("checkpoint", "device")
"""Keys of a description that say where something lies or ran, beside the digest that says what it is."""


@runtime_checkable
class Described(Protocol):
    """A part that says what its results depend on."""

    def describe(self) -> dict[str, object]: ...


@runtime_checkable
class CutsCaptions(Protocol):
    """A conditioner that reads no more than a number of tokens."""

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]: ...


def protocol(
    *,
    generate: Described,
    metrics: Mapping[str, object],
    conditions: Mapping[str, object],
    work: Work,
    resolution: Sequence[int],
    container: str = "memory",
) -> dict[str, object]:
    """The part of the card that is known before any image is made, without the reference; see ``protocol_card``.

    Args:
        generate: what makes the images, and says on which ``device`` and by which rule they become uint8, where they
            were anything else. Where it has a false ``reads_seeds`` the card names no seeds.
        conditions: what the images are made for: dataset, its fingerprint and how its images are cut and resized, or
            the sha256 of the prompts.
        resolution: height and width.
        container: what the images were measured from: memory, or the format of files made elsewhere.
    """
    seeds = {"base": work.seed, "rule": SEED_RULE, "first": image_seed(work.seed, 0), "count": work.count}
    return {
        "generation": _told(generate),
        "numerics": _numerics(generate),
        **({"seeds": seeds} if getattr(generate, "reads_seeds", True) else {}),
        "conditions": dict(conditions),
        "samples": {
            "count": work.count,
            "resolution": list(resolution),
            "chunk": work.size,
            "container": container,
        },
        "metrics": {name: {"class": type(metric).__name__, **_told(metric)} for name, metric in metrics.items()},
    }


def protocol_card(
    *,
    model: Mapping[str, object],
    protocol: Mapping[str, object],
    references: Mapping[str, Reference],
    observed: Mapping[str, object],
    config: Mapping[str, object],
    world_size: int,
    device: str,
    wall_seconds: float,
    controls: Mapping[str, Described] | None = None,
) -> dict[str, object]:
    """A JSON-ready card of one evaluation.

    Args:
        model: see ``checkpoint_identity``.
        protocol: see the function of that name.
        references: by the metric's name.
        observed: see the function of that name.
        config: see ``app.repeat.config_record``.
        device: e.g. "cuda".
        controls: what made the images that the model's stand beside.
    """
    card: dict[str, object] = {
        "schema": SCHEMA,
        "model": dict(model),
        "protocol": with_references(protocol, references),
        "observed": dict(observed),
    }
    if controls:
        card["controls"] = {name: _told(control) for name, control in controls.items()}
    return card | {
        "environment": environment(world_size, device),
        "wall_seconds": round(wall_seconds, 3),
        "config": dict(config),
    }


def with_references(protocol: Mapping[str, object], references: Mapping[str, Reference]) -> dict[str, object]:
    """The whole part of the card that decides whether two numbers are comparable."""
    return {**protocol, "reference": {name: _told(reference) for name, reference in references.items()}}


def checkpoint_identity(
    path: str | Path,
    *,
    weights: str,
    ema: Mapping[str, object] | None = None,
    text_encoders: Sequence[Mapping[str, object]] = (),
) -> dict[str, object]:
    """What was measured, from the checkpoint's manifest.

    Args:
        weights: "ema" or "model".
        ema: how the average was made (decay, or length of a post-hoc one).
        text_encoders: settings and sha256 of frozen ones, which are no part of the checkpoint.
    """
    manifest = store.read_manifest(path)
    return {
        "checkpoint": str(path),
        "digest": manifest.digest,
        "kind": manifest.kind,
        "weights": weights,
        **({"ema": dict(ema)} if ema and weights == "ema" else {}),
        **manifest.counters,
        **({"training_data": manifest.data["fingerprint"]} if manifest.data else {}),
        **({"first_stage": dict(manifest.first_stage)} if manifest.first_stage else {}),
        **({"text_encoders": [dict(encoder) for encoder in text_encoders]} if text_encoders else {}),
    }


def observed(folder: ChunkFolder, cut: str | None = None) -> dict[str, object]:
    """Of the images that were measured: sha256 of their ordered sha256s, how many equal an earlier one, and how many of
    their captions were cut, where the column ``cut`` says it."""
    digests = folder.rows().column(DIGEST)
    found: dict[str, object] = {
        "images_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "duplicates": len(digests) - len(set(digests)),
    }
    if cut is not None:
        found["captions_cut"] = int(folder.rows().column(cut).sum())
    return found


def cut_captions(conditioner: CutsCaptions) -> Measure:
    """For ``engine.fill``: the column ``cut``, which captions are longer than the conditioner reads."""

    def measure(images: torch.Tensor, batch: Batch) -> Mapping[str, torch.Tensor]:
        captions = batch.caption or [""] * len(batch)
        return {CUT: torch.tensor([bool(conditioner.cut_captions([caption])) for caption in captions])}

    return measure


def environment(world_size: int, device: str) -> dict[str, object]:
    """Versions, source revision and hardware of this process."""
    return {
        "latentdiff": latentdiff.__version__,
        "revision": source_revision(Path(latentdiff.__file__).parent),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "device": device,
        "accelerator": torch.cuda.get_device_name() if device == "cuda" else None,
        "machine": platform.machine(),
        "world_size": world_size,
        "threads": torch.get_num_threads(),
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


def package_version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numerics(generate: Described) -> dict[str, object]:
    """How exactly float32 is computed with."""
    on_gpu = generate.describe().get("device") == "cuda"
    return {
        "float32_matmul": torch.get_float32_matmul_precision(),
        "tf32_convolutions": on_gpu and torch.backends.cudnn.allow_tf32,
    }


def _told(part: object) -> dict[str, object]:
    """What a part says of itself, without places."""
    return _placeless(part.describe()) if isinstance(part, Described) else {}


def _placeless(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _placeless(child) for key, child in value.items() if key not in _PLACES}
    return [_placeless(child) for child in value] if isinstance(value, (list, tuple)) else value


def _git(root: Path, *command: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()
