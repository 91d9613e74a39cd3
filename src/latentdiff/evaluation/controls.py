"""The same metrics on images that no diffusion model made. A number without them does not say whether it is good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from latentdiff.evaluation.engine import ComparesWithReal, Generate, Samples, evaluate
from latentdiff.types import Metric


@runtime_checkable
class Renewable(Protocol):
    """A metric that controls are measured by too: ``anew`` is a fresh one, against the same real images if any."""

    def anew(self) -> Metric: ...


@dataclass(frozen=True)
class Control:
    """Images to be measured beside the model's.

    ``conditioned``: they were made for the samples' conditions. Others are measured by the metrics alone that compare
    a set of images with real ones.
    """

    generate: Generate
    samples: Samples
    num_images: int
    conditioned: bool = True


def measure_controls(
    controls: Mapping[str, Control], metrics: Mapping[str, Metric], *, batch_size: int, seed: int
) -> dict[str, dict[str, dict]]:
    """Name of a control -> name of a metric -> its results; a control that no metric applies to is left out.

    Args:
        metrics: those of the model's images, which have measured their real images; they are left as they are.
        batch_size, seed: as the model's.
    """
    found = {}
    for name, control in controls.items():
        fresh = {
            title: metric.anew()
            for title, metric in metrics.items()
            if isinstance(metric, Renewable) and (control.conditioned or isinstance(metric, ComparesWithReal))
        }
        if fresh:
            found[name] = evaluate(
                control.generate,
                control.samples,
                fresh,
                num_images=control.num_images,
                batch_size=batch_size,
                seed=seed,
                measure_real=False,
            )
    return found
