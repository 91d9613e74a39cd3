"""What is known of a checkpoint that is to be published: from its manifest, its configuration, and its evaluation."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

from latentdiff.app.evaluation.work_files import GRID
from latentdiff.app.run.record import ENVIRONMENT
from latentdiff.checkpoint import store
from latentdiff.checkpoint.bundle import ABOUT
from latentdiff.checkpoint.manifest import MANIFEST, WEIGHTS
from latentdiff.checkpoint.places import first_stage_in, moved
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import load_config
from latentdiff.evaluation.compare import RESULTS, read_results

PARTS = {
    "diffusion": {"ema.model.denoiser.": "backbone", "ema.model.conditioner.": "conditioner, trained along"},
    "autoencoder": {"ema.model.": "first stage"},
    "classifier": {"ema.model.": "classifier"},
}
"""By the kind of the checkpoint: how the names of averaged weights begin -> the part they are of."""
GRIDS = ("samples", "reconstructions")
"""Folders of a run with pictures named by batches seen."""
PICTURE = "samples.png"
"""Beside the card of what was exported."""


@dataclass(frozen=True)
class Told:
    """What the user says of a model: its licence (an id such as ``apache-2.0``), and where its evaluation is."""

    license: str | None = None
    results: str | None = None


@dataclass(frozen=True)
class Facts:
    """``evaluation``: of a results.json what ``_public`` keeps, None where there is none of these weights;
    ``revision``: the commit of latentdiff that trained it; ``picture``: a grid of its images; ``parameters`` by part.
    """

    manifest: store.Manifest
    config: Mapping[str, Any]
    license: str | None
    revision: str | None
    evaluation: Mapping[str, Any] | None
    picture: Path | None
    parameters: Mapping[str, int]

    def select(self, key: str) -> Any:
        """The value of a dotted key of the configuration; None where there is none."""
        found: Any = self.config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    @property
    def kept(self) -> dict[str, object]:
        """What is known beside the checkpoint, JSON-ready: an export of ours keeps it for exports of itself."""
        own = {"license": self.license, "revision": self.revision, "evaluation": self.evaluation}
        return {name: value for name, value in own.items() if value is not None}

    def name(self, key: str) -> str | None:
        """Of the class that a node is built from."""
        target = self.select(f"{key}._target_")
        return None if target is None else target.rpartition(".")[2]


def facts_of(path: Path, told: Told, *, first_stage: str | None = None) -> Facts:
    """Of the checkpoint directory ``path``, with the evaluation that is ``told``, else the newest that is found beside
    its run, else that of the card of an exported one. ``first_stage``: its place, if it is not where training found it.

    Raises InputError where the evaluation is told and is none of the averaged weights of this checkpoint.
    """
    manifest = store.read_manifest(path)
    where = _told_results(told.results, manifest) if told.results else _found_results(path, manifest)
    parameters = _parameters(path, manifest.kind)
    if manifest.first_stage is not None:
        place = first_stage_in(first_stage or moved(manifest.first_stage["path"], manifest, path))
        if (Path(place) / MANIFEST).is_file():
            parameters |= _parameters(Path(place), "autoencoder")
    before = manifest.extra.get(ABOUT, {})
    return Facts(
        manifest=manifest,
        config=OmegaConf.to_container(load_config(path / store.CONFIG)),
        license=told.license or before.get("license"),
        revision=before.get("revision") or _revision(run_of(path)),
        evaluation=_kept(before, manifest) if where is None else _public(read_results(where)),
        picture=_picture(path, manifest, where),
        parameters=parameters,
    )


def run_of(path: Path) -> Path:
    """The run directory that holds a checkpoint."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _revision(run: Path) -> str | None:
    file = run / ENVIRONMENT
    return json.loads(file.read_text(encoding="utf-8")).get("revision") if file.is_file() else None


def _public(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the card shows, and whose numbers they are: nothing of where files lay."""
    card = results["card"]
    model = {key: card["model"].get(key) for key in ("digest", "weights")}
    environment = {key: card["environment"].get(key) for key in ("latentdiff", "revision", "device")}
    told = {"model": model, "protocol": card["protocol"], "environment": environment}
    return {"results": results["results"], "card": told}


def _kept(before: Mapping[str, Any], manifest: store.Manifest) -> Mapping[str, Any] | None:
    found = before.get("evaluation")
    return found if found is not None and _is_of(found, manifest) else None


def _told_results(results: str, manifest: store.Manifest) -> Path:
    if not _is_of(read_results(results), manifest):
        raise InputError(
            f"--results: '{results}' is no evaluation of the averaged weights of this checkpoint "
            f"({manifest.digest[:12]}); evaluate it, or leave --results out"
        )
    return Path(results)


def _found_results(path: Path, manifest: store.Manifest) -> Path | None:
    found = [file for file in _candidates(run_of(path.resolve())) if _is_readable(file, manifest)]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def _candidates(run: Path) -> Iterator[Path]:
    """In the run, beside it, and where evaluate.py writes unless it is told otherwise."""
    for pattern in (RESULTS, f"*/{RESULTS}", f"../*/{RESULTS}", f"../evaluate/*/{RESULTS}"):
        yield from run.glob(pattern) if not pattern.startswith("..") else run.parent.glob(pattern[3:])
    yield from run.parent.parent.glob(f"evaluate/*/{RESULTS}")


def _is_readable(file: Path, manifest: store.Manifest) -> bool:
    try:
        return _is_of(read_results(file), manifest)
    except InputError:
        return False


def _is_of(results: Mapping[str, Any], manifest: store.Manifest) -> bool:
    model = results["card"]["model"]
    return model.get("digest") == manifest.digest and model.get("weights") == "ema"


def _picture(path: Path, manifest: store.Manifest, results: Path | None) -> Path | None:
    """The evaluation's grid, else the one that training drew of the same weights."""
    drawn = [run_of(path) / folder / f"{store.kept_name(manifest.counters['batches_seen'])}.png" for folder in GRIDS]
    beside = [] if results is None else [(results if results.is_dir() else results.parent) / GRID]
    return next((file for file in (*beside, *drawn, run_of(path) / PICTURE) if file.is_file()), None)


def _parameters(path: Path, kind: str) -> dict[str, int]:
    """By part, of the averaged weights; nothing where there are none."""
    counted: Counter[str] = Counter()
    if not (path / WEIGHTS["ema"]).is_file():
        return {}
    with safe_open(path / WEIGHTS["ema"], framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  it is no mapping
            part = next((part for prefix, part in PARTS[kind].items() if name.startswith(prefix)), None)
            if part is not None:
                counted[part] += math.prod(file.get_slice(name).get_shape())
    return dict(counted)
