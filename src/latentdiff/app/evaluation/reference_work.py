"""Measuring a data set's images for a reference file: by several processes, resumable, complete when it appears."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

import latentdiff
from latentdiff.app.evaluation.reference import Wanted
from latentdiff.app.evaluation.references import check_enough, comparing_metrics, dataset_record, preparation, real_rows
from latentdiff.app.evaluation.work_files import FOLDER
from latentdiff.app.processes import is_first
from latentdiff.app.ranks import Ranks, launched
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.data.datamodule import DataModule
from latentdiff.data.making.work import take
from latentdiff.data.shard_set import ShardSet
from latentdiff.evaluation.baselines import RealImages
from latentdiff.evaluation.card import observed, package_version
from latentdiff.evaluation.reference_file import Seen, save_reference
from latentdiff.metrics.on_features import OnFeatures

PACKAGES = ("torch", "numpy", "pillow", "torch-fidelity", "open-clip-torch", "transformers", "torchvision")


def make_reference(cfg: DictConfig, dest: Path, wanted: Wanted) -> dict[str, object] | None:
    """Writes ``dest`` and returns its record, in the first process; None in the others.

    The images are what evaluation sees of the data: centre crop, no augmentation. Raises InputError for data or
    metrics that make no reference, and where an interrupted command that differs stands in the way.
    """
    metrics = _metrics(cfg)
    if wanted.keep:
        _check_kept(metrics, min(wanted.keep, wanted.count or wanted.keep))
    node = _data_node(cfg)
    beside = dest.absolute().parent / f".{dest.name}.making"
    with _alone(beside, dest):
        ranks = launched(cfg.trainer)
        with ranks.together(beside / "fault"):
            return _made(cfg, node, metrics, dest, beside / FOLDER, wanted, ranks)


def _made(
    cfg: DictConfig,
    node: DictConfig,
    metrics: dict[str, OnFeatures],
    dest: Path,
    folder: Path,
    wanted: Wanted,
    ranks: Ranks,
) -> dict[str, object] | None:
    data = _opened(node, ranks)
    chosen = _chosen(data, wanted)
    if wanted.keep:
        _check_kept(metrics, min(wanted.keep, len(chosen)))
    for metric in metrics.values():
        metric.check_reference(len(chosen))
    record = {
        "dataset": dataset_record(data, wanted.split, chosen),
        "images": preparation(data),
        "count": len(chosen),
        "chunk": cfg.batch_size,
    }
    source = RealImages(device=ranks.device), data.ranges_of(chosen)
    rows = real_rows(folder, *source, len(chosen), cfg.batch_size, metrics, record, ranks)
    if not ranks.first:
        return None
    packages = {name: found for name in PACKAGES if (found := package_version(name))}
    record |= observed(rows) | {"made_with": {"latentdiff": latentdiff.__version__, **packages}}
    seen = [Seen(metric.features, rows.rows(f"{name}/"), metric.real_layers) for name, metric in metrics.items()]
    return save_reference(dest, record, seen, keep=wanted.keep)


def _metrics(cfg: DictConfig) -> dict[str, OnFeatures]:
    if not cfg.metrics:
        raise InputError(
            "metrics: choose those of the evaluation, whose networks look at the images: metrics=inception"
        )
    metrics = comparing_metrics({name: build(node) for name, node in cfg.metrics.items()})
    if not metrics:
        raise InputError("metrics: none of these compares with real images; choose others, e.g. metrics=inception")
    return metrics


def _check_kept(metrics: dict[str, OnFeatures], count: int) -> None:
    """Raises InputError where the features of ``count`` images are too few for a measure that compares single ones."""
    try:
        for metric in metrics.values():
            check_enough(metric, count)
    except InputError as error:
        raise InputError(
            f"features: those of {count} images would be kept; keep more, of more images (num_images), or none with "
            f"features=0: {error}"
        ) from error


def _data_node(cfg: DictConfig) -> DictConfig:
    """The program's data, else the checkpoint's."""
    node = cfg.data
    if node is not None and cfg.checkpoint is not None:
        raise InputError("checkpoint: its data are not looked at where others are given; leave one of them out")
    if node is None and cfg.checkpoint is not None:
        node = load_config(store.resolve(cfg.checkpoint, prefer=("last", "best")) / store.CONFIG).get("data")
    if node is None or node.get("module") is None:
        raise InputError("data: choose some, e.g. data=webdataset data.train=PATH data.size=256, or checkpoint=PATH")
    return node


def _opened(node: DictConfig, ranks: Ranks) -> DataModule:
    data: DataModule = build(node.module)
    if data.readers is not None:
        raise InputError("data: cached latents have no images; name those they were made of, e.g. data=webdataset")
    data.require_captions, data.require_labels, data.conditions = False, False, None
    if ranks.first:
        data.prepare_data()
    ranks.barrier()
    return data


def _chosen(data: DataModule, wanted: Wanted) -> ShardSet:
    """Usable samples of the split, spread evenly."""
    shards = data.train_set if wanted.split == "train" else data.val_set
    usable = np.flatnonzero(~shards.broken())
    count = len(usable) if wanted.count is None else wanted.count
    if count > len(usable):
        raise InputError(f"num_images: {count} are wanted, the split has {len(usable)} usable samples; lower it")
    return shards.select(usable[np.linspace(0, len(usable) - 1, count).astype(np.int64)])


@contextmanager
def _alone(beside: Path, dest: Path) -> Iterator[None]:
    """Holds the work's folder, in the first process; keeps it where there is work to go on with."""
    if not is_first():
        yield
        return
    beside.mkdir(parents=True, exist_ok=True)
    with open(beside / "lock", "a+", encoding="utf-8") as file:
        take(file, f"another process is making {dest}; wait for it or name another DEST")
        try:
            yield
        finally:
            if dest.exists() or not (beside / FOLDER).exists():
                shutil.rmtree(beside, ignore_errors=True)
