"""The same metrics on images that no diffusion model made. A number without them does not say whether it is good."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from latentdiff.config.errors import InputError
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import ComparesWithReal, Generate, Samples, Work, fill, measures_of, results
from latentdiff.metrics.reference import Reference
from latentdiff.types import Metric


@runtime_checkable
class ChecksCount(Protocol):
    """A metric that may need more images than there are; InputError where ``count`` are too few."""

    def check_count(self, count: int) -> None: ...


@dataclass(frozen=True)
class Control:
    """Images to be measured beside the model's, ``count`` of them.

    ``conditioned``: they were made for the samples' conditions. Others are measured by the metrics alone that compare
    a set of images with real ones. A metric that needs more images than ``count`` is left out.
    """

    generate: Generate
    samples: Samples
    count: int
    conditioned: bool = True

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {**self.generate.describe(), "count": self.count}


def fill_controls(
    folder: Path,
    controls: Mapping[str, Control],
    metrics: Mapping[str, Metric],
    work: Work,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Makes and measures this rank's share of every control's images, each in ``folder/controls/NAME``.

    Args:
        folder: of the evaluation's work files, the same on every rank.
        metrics: those of the model's images, without those of the model itself (``bound.VariationalBound``).
        work: the model's; a control has as many images as itself says.
        progress: called after each chunk with its number of images.
    """
    for name, control in controls.items():
        if applying := applicable(metrics, control):
            own = replace(work, count=control.count)
            fill(
                _folder(folder, name, own),
                own,
                control.generate,
                control.samples,
                measures_of(applying),
                progress=progress,
            )


def control_results(
    folder: Path,
    controls: Mapping[str, Control],
    metrics: Mapping[str, Metric],
    work: Work,
    references: Mapping[str, Reference] | None = None,
) -> dict[str, dict[str, dict]]:
    """Name of a control -> name of a metric -> its results; a control that no metric applies to is left out.

    To be called when every rank has filled its share. ``references``: the model's.
    """
    found = {}
    for name, control in controls.items():
        if applying := applicable(metrics, control):
            found[name] = results(_folder(folder, name, replace(work, count=control.count)), applying, references)
    return found


def control_folders(
    folder: Path, controls: Mapping[str, Control], metrics: Mapping[str, Metric], work: Work
) -> list[ChunkFolder]:
    """Those that ``fill_controls`` fills."""
    wanted = {name: control for name, control in controls.items() if applicable(metrics, control)}
    return [_folder(folder, name, replace(work, count=control.count)) for name, control in wanted.items()]


def applicable(metrics: Mapping[str, Metric], control: Control) -> dict[str, Metric]:
    """Those that the control is measured by."""
    return {name: metric for name, metric in metrics.items() if _applies(metric, control)}


def _applies(metric: Metric, control: Control) -> bool:
    compares_sets = isinstance(metric, ComparesWithReal) and metric.needs_reference
    if not (control.conditioned or compares_sets):
        return False
    try:
        if isinstance(metric, ChecksCount):
            metric.check_count(control.count)
    except InputError:
        return False
    return True


def _folder(folder: Path, name: str, work: Work) -> ChunkFolder:
    return ChunkFolder(folder / "controls" / name, work.chunks)
