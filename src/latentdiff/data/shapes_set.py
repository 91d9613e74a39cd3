"""The embedded world as WebDataset shards: drawn once, exact attributes beside every picture."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from latentdiff.config.errors import InputError
from latentdiff.data.parallel import mapped
from latentdiff.data.shards import ShardInfo, staged, write_index, write_shard
from latentdiff.data.worker import available_cores
from latentdiff.shapes.captions import caption
from latentdiff.shapes.renderer import render, segmentation
from latentdiff.shapes.scene import Scene, attributes, sample_scene

SAMPLES_PER_SHARD = 500
META_NAME = "dataset.json"
_SPLITS = ("train", "val")
_VERSION = 3
_PROBED = 16
_MOST_PROCESSES = 8
_DEFAULT_SAMPLES = (10_000, 1_000)
_CAPTION_DRAWS = 1
"""Keeps the caption's random numbers apart from the scene's."""


@dataclass(frozen=True)
class _Task:
    folder: str
    split: str
    shard: int
    first: int
    stop: int
    image_size: int
    seed: int


def shapes_folder(root: Path, image_size: int, seed: int, train_samples: int, val_samples: int) -> Path:
    """Where the set lies below ``root``; other sizes than the usual 10000 and 1000 have a folder of their own."""
    name = f"shapes-{image_size}-{seed}"
    usual = (train_samples, val_samples) == _DEFAULT_SAMPLES
    return root / (name if usual else f"{name}-{train_samples}x{val_samples}")


def prepare_shapes(folder: Path, *, image_size: int, seed: int, train_samples: int, val_samples: int) -> None:
    """Makes ``folder/train`` and ``folder/val`` unless they are there as today's generator draws them.

    A set drawn by another version of the generator is replaced. Two processes may do this at once: both draw, one
    result stays.
    """
    if min(train_samples, val_samples, image_size) < 1:
        raise InputError(f"expected sizes of at least 1, got {train_samples=}, {val_samples=}, {image_size=}")
    samples = {"train": train_samples, "val": val_samples}
    meta = {"samples": samples, "image_size": image_size, "seed": seed, "generator": _generator(image_size, seed)}
    if _meta_of(folder) == meta:
        return
    if folder.exists():
        _discard(folder)
    try:
        with staged(folder) as partial:
            _write_splits(partial, samples, image_size, seed)
            (partial / META_NAME).write_text(json.dumps(meta, indent=1), encoding="utf-8")
    except (InputError, OSError):
        if _meta_of(folder) != meta:  # not another process that has made the same set meanwhile
            raise


def shapes_sample(seed: int, index: int, split: str, image_size: int) -> dict:
    """Sample ``index`` of a split as ``shards.write_shards`` takes it: a pure function of the arguments."""
    scene, text = _scene_and_caption(seed, index, split)
    size = {"width": image_size, "height": image_size}
    return {
        "png": _png(render(scene, image_size)),
        "txt": text,
        "json": {**attributes(scene, image_size), "caption": text, **size},
        "cls": scene.label,
        "seg.png": _png(segmentation(scene, image_size)),
    }


def _scene_and_caption(seed: int, index: int, split: str) -> tuple[Scene, str]:
    scene = sample_scene(seed, index, split=split)
    return scene, caption(scene, np.random.default_rng((seed, _SPLITS.index(split), index, _CAPTION_DRAWS)))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _generator(image_size: int, seed: int) -> dict:
    """Version of the generator: a number, and a digest of what it draws today, should the number be forgotten."""
    digest = hashlib.sha256()
    for split in _SPLITS:
        for index in range(_PROBED):
            scene, text = _scene_and_caption(seed, index, split)
            digest.update(render(scene, image_size).tobytes() + segmentation(scene, image_size).tobytes())
            digest.update(json.dumps([text, attributes(scene, image_size)], sort_keys=True).encode())
    return {"version": _VERSION, "probe": digest.hexdigest()}


def _meta_of(folder: Path) -> dict | None:
    path = folder / META_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _discard(folder: Path) -> None:
    """Takes an outdated set away in one step, so that nobody finds half of it."""
    if not (folder / META_NAME).exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is in the way: it is not a set of shapes (no {META_NAME}); move it or change the root"
        )
    outdated = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.outdated"
    os.rename(folder, outdated)
    shutil.rmtree(outdated, ignore_errors=True)


def _write_splits(folder: Path, samples: dict[str, int], image_size: int, seed: int) -> None:
    tasks = []
    for split, total in samples.items():
        (folder / split).mkdir()
        for shard, first in enumerate(range(0, total, SAMPLES_PER_SHARD)):
            stop = min(first + SAMPLES_PER_SHARD, total)
            tasks.append(_Task(str(folder / split), split, shard, first, stop, image_size, seed))
    infos: dict[str, list[ShardInfo]] = {split: [] for split in samples}
    processes = min(available_cores(), len(tasks), _MOST_PROCESSES)
    with closing(mapped(_write, tasks, processes)) as drawn, Progress(transient=True) as progress:
        bar = progress.add_task("drawing the embedded dataset", total=sum(samples.values()))
        for task, info in zip(tasks, drawn):
            infos[task.split].append(info)
            progress.advance(bar, info.samples)
    for split, written in infos.items():
        write_index(folder / split, written)


def _write(task: _Task) -> ShardInfo:
    return write_shard(Path(task.folder), task.shard, _samples(task))


def _samples(task: _Task) -> Iterable[dict]:
    return (shapes_sample(task.seed, index, task.split, task.image_size) for index in range(task.first, task.stop))
