"""What an evaluation's images are compared with: a file, or validation images that are measured beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from latentdiff import durable
from latentdiff.app.evaluation.subject import Subject
from latentdiff.app.evaluation.work_files import take_up, watched
from latentdiff.app.processes import warn
from latentdiff.app.ranks import Ranks
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.data.datamodule import DataModule
from latentdiff.data.shard_set import ShardSet
from latentdiff.evaluation.baselines import RealImages
from latentdiff.evaluation.card import PREPARATION, observed
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import Generate, Samples, Work, fill
from latentdiff.evaluation.external_statistics import ExternalFile
from latentdiff.evaluation.given_images import GivenImages, ImageArray
from latentdiff.evaluation.npz_member import opened_npz
from latentdiff.evaluation.reference_file import RECORD, ReferenceFile
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.frechet_infinity import FrechetInfinity
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.reference import MeasuredReference, Reference
from latentdiff.types import Metric

FOLDER = "reference"
"""Of the measured images' chunks, below the evaluation's."""
OF_MOMENTS = (FrechetDistance, FrechetInfinity)
"""Measures for which a reference's mean and covariance are enough."""


def references_for(
    cfg: DictConfig, metrics: Mapping[str, Metric], data: DataModule | None, subject: Subject, ranks: Ranks, where: Path
) -> dict[str, Reference]:
    """Of the metrics that compare with real images, by name. Collective.

    ``cfg.reference``'s, else the first ``cfg.num_reference`` validation images (of a first stage the originals), which
    all ranks measure into ``where/chunks/reference``; a killed evaluation goes on there.

    Raises InputError where there is nothing to compare with, and for a reference of another extractor, image size or
    preparation, or that lacks what a measure reads.
    """
    comparing = comparing_metrics(metrics)
    if not comparing:
        for key in ("reference", "num_reference"):
            if cfg[key] is not None:
                raise InputError(f"{key}: none of the metrics compares with real images; leave it out")
        return {}
    size = _image_size(data, subject)
    folder = where / "chunks" / FOLDER
    if cfg.reference is None:
        return _measured(cfg, comparing, data, subject, ranks, folder)
    path = Path(cfg.reference)
    if is_own_file(path):
        references = _of_own_file(path, comparing, data, subject, size)
    else:
        references = _of_external_file(path, comparing, size, cfg.batch_size, ranks, folder)
    if ranks.first:
        for name, reference in references.items():
            _check_complete(comparing[name], reference)
    ranks.barrier()
    return references


def comparing_metrics(metrics: Mapping[str, Metric]) -> dict[str, OnFeatures]:
    """Those that need a reference."""
    return {name: m for name, m in metrics.items() if isinstance(m, OnFeatures) and m.needs_reference}


def real_rows(
    folder: Path,
    source: Generate,
    samples: Samples,
    count: int,
    chunk: int,
    metrics: Mapping[str, OnFeatures],
    determines: Mapping[str, object],
    ranks: Ranks,
) -> ChunkFolder:
    """What the metrics' networks see in ``count`` real images, in chunks below ``folder``; all of it, on every rank.

    Collective; goes on in a folder of the same work. ``determines``: what decides which images these are.
    """
    if count < 2:
        raise InputError(f"reference: at least 2 real images are needed, there is {count}")
    work = Work(count, chunk, rank=ranks.rank, ranks=ranks.count)
    seen_by = {name: look(metric, metric.real_layers) for name, metric in metrics.items()}
    take_up(folder, {**determines, "count": count, "chunk": chunk, "metrics": seen_by}, ranks)
    rows = ChunkFolder(folder, work.chunks)
    measures = {name: metric.measure_real for name, metric in metrics.items()}
    with watched([rows], "real images", Console(quiet=not ranks.first), ranks):
        fill(rows, work, source, samples, measures, progress=lambda _: ranks.check())
        ranks.barrier()
    return rows


def look(metric: OnFeatures, layers: Sequence[str]) -> dict[str, object]:
    """What the metric's columns depend on, whatever is computed from them."""
    return {"features": metric.features.name, **metric.features.describe(), "layers": sorted(layers)}


def _check_complete(metric: OnFeatures, reference: Reference) -> None:
    """Raises InputError where the reference lacks a layer or features that one of the measures reads."""
    metric.check_reference(reference.count)
    for measure in metric.measures:
        for layer in measure.layers if measure.needs_reference else ():
            if isinstance(measure, OF_MOMENTS):
                reference.moments(layer)
            else:
                check_enough(metric, len(reference.features(layer)))


def check_enough(metric: OnFeatures, count: int) -> None:
    """Raises InputError where single features of ``count`` real images are too few for one of the measures."""
    for measure in metric.measures:
        if measure.needs_reference and not isinstance(measure, OF_MOMENTS):
            try:
                measure.check(metric.features, count)
            except InputError as error:
                raise InputError(f"reference: its {count} images are too few, as of generated ones: {error}") from error


def preparation(data: DataModule) -> dict[str, object]:
    """How the data's images become those of an evaluation."""
    return {"size": data.image_size, "preparation": PREPARATION, "background": list(data.background)}


def dataset_record(data: DataModule, split: str, samples: ShardSet) -> dict[str, object]:
    """Which images these are: ``fingerprint`` is that of the data's training samples, as checkpoints have it."""
    own = {"name": data.source.name, "fingerprint": data.fingerprint(), "split": split}
    return {**own, "samples": samples.fingerprint()}


def is_own_file(path: Path) -> bool:
    """Whether ``latentdiff reference`` made it. Raises InputError for what is no .npz file at all."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    with opened_npz(path) as arrays:
        return RECORD in arrays


def _measured(
    cfg: DictConfig,
    metrics: Mapping[str, OnFeatures],
    data: DataModule | None,
    subject: Subject,
    ranks: Ranks,
    folder: Path,
) -> dict[str, Reference]:
    if data is None:
        raise InputError(
            "reference: there are no data to compare with; name a file (latentdiff reference makes one), or data=... "
            "whose validation images are it"
        )
    if cfg.num_reference is not None and subject.stage_one is not None:
        raise InputError("num_reference: a first stage is compared with the originals of its images; leave it out")
    count, available = cfg.num_images if cfg.num_reference is None else cfg.num_reference, len(data.val_set)
    if count > available:
        raise InputError(
            f"num_reference: {count} real images are wanted, there are {available} validation samples; lower it, or "
            "give a file as reference"
        )
    for metric in metrics.values():
        metric.check_reference(count)
        check_enough(metric, count)
    determines = {"dataset": dataset_record(data, "val", data.val_set), "images": preparation(data)}
    source = RealImages(device=ranks.device), data.ranges_of(data.val_set)
    rows = real_rows(folder, *source, count, cfg.batch_size, metrics, determines, ranks)
    about = {"from": "validation images, the first", **determines, **ranks.broadcast(observed(rows))}
    return {name: MeasuredReference(rows.rows(f"{name}/"), about) for name in metrics}


def _of_own_file(
    path: Path, metrics: Mapping[str, OnFeatures], data: DataModule | None, subject: Subject, size: tuple[int, int]
) -> dict[str, Reference]:
    file = ReferenceFile(path)
    made = file.record["images"]
    now = {"size": size[0]} if data is None else preparation(data)
    if size[0] != size[1] or (differing := [key for key in now if made.get(key) != now[key]]):
        key = "size" if size[0] != size[1] else differing[0]
        got = f"{size[0]}x{size[1]}" if key == "size" else now[key]
        raise InputError(
            f"reference: '{path}' was made of images with {key} {made.get(key)}, here it is {got}; make one with "
            "latentdiff reference and the data of this evaluation"
        )
    _warn_of_other_data(file, subject)
    return {name: file.of(metric.features) for name, metric in metrics.items()}


def _warn_of_other_data(file: ReferenceFile, subject: Subject) -> None:
    """The card has both fingerprints."""
    trained = None if subject.path is None else store.read_manifest(subject.path).data
    own = file.record["dataset"]
    if trained is not None and trained["fingerprint"] != own["fingerprint"]:
        warn(f"reference: '{file.path}' was made of other data ({own['name']}) than the checkpoint was trained on")


def _of_external_file(
    path: Path, metrics: Mapping[str, OnFeatures], size: tuple[int, int], chunk: int, ranks: Ranks, folder: Path
) -> dict[str, Reference]:
    file = ExternalFile.read(path)
    if file.resize_untold and any(metric.features.published for metric in metrics.values()):
        warn(
            f"reference: '{path}' does not say how images were resized before the Inception saw them; if it was not as "
            "the published FID does it, the distances are too large; latentdiff reference makes a file that says it"
        )
    looking = {name: metric for name, metric in metrics.items() if file.images and _looks_at_images(file, metric)}
    measured: dict[str, Reference] = {}
    if looking:
        images = ImageArray(path)
        if images.size != size:
            raise InputError(
                f"reference: the images in '{path}' have {images.size[0]}x{images.size[1]} pixels, those to be "
                f"measured {size[0]}x{size[1]}"
            )
        given = GivenImages(images, count=len(images), seed=0, device=ranks.device)
        rows = real_rows(
            folder, given, given.samples, len(images), chunk, looking, {"sha256": durable.sha256(path)}, ranks
        )
        about = ranks.broadcast(observed(rows))
        measured = {name: MeasuredReference(rows.rows(f"{name}/"), about) for name in looking}
    return {name: file.of(metric.features, measured.get(name)) for name, metric in metrics.items()}


def _looks_at_images(file: ExternalFile, metric: OnFeatures) -> bool:
    """Whether the file's moments are not enough."""
    moments = file.moments if metric.features.published else {}
    comparing = [measure for measure in metric.measures if measure.needs_reference]
    return any(not isinstance(each, OF_MOMENTS) or not set(each.layers) <= set(moments) for each in comparing)


def _image_size(data: DataModule | None, subject: Subject) -> tuple[int, int]:
    """(H, W) of what is measured. Raises InputError where the data's differ."""
    if subject.given is None:
        return data.image_size, data.image_size
    if data is not None and subject.given != (data.image_size, data.image_size):
        got = f"{subject.given[0]}x{subject.given[1]}"
        raise InputError(f"data.size: {data.image_size}, but the images to be measured have {got} pixels")
    return subject.given
