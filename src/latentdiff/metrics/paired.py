"""Metrics that hold each reconstruction against its own original: means over images of one value per image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Batch, Column, Rows


class Paired(ABC):
    """Mean over images of ``compare``; a subclass names its result and says what one image's value is."""

    name: str

    @abstractmethod
    def compare(self, images: Tensor, originals: Tensor) -> Tensor:
        """Both uint8 (B, 3, H, W) on one device -> one value per image, (B,)."""

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """Reconstructions, uint8 (B, 3, H, W), of ``batch.image``."""
        if batch.image is None:
            raise InputError(f"{self.name} needs the batch's own images to compare with, the batch has none")
        return {self.name: self.compare(images, batch.image.to(images.device))}

    def result(self, rows: Rows) -> dict[str, float]:
        """{name: mean}."""
        return {self.name: float(rows.column(self.name).double().mean())}


class Fidelity:
    """Several paired metrics under one name in the results."""

    def __init__(self, *, metrics: Sequence[Paired]):
        self.metrics = list(metrics)

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        return {name: column for metric in self.metrics for name, column in metric.measure(images, batch).items()}

    def result(self, rows: Rows) -> dict[str, float]:
        return {name: value for metric in self.metrics for name, value in metric.result(rows).items()}


def check_unpaired(metrics: Mapping[str, object]) -> None:
    """Raises InputError where one of these, which are of generated images, compares an image with its own original."""
    for name, metric in metrics.items():
        if isinstance(metric, (Paired, Fidelity)):
            raise InputError(
                f"metrics: '{name}' compares an image with its own original, which a sample of stage two does not "
                "have; evaluate a stage-one checkpoint with it, or choose another metric"
            )


def check_pair(image: Tensor, reference: Tensor) -> None:
    """ValueError unless both are (B, C, H, W) of one shape."""
    if image.shape != reference.shape or image.ndim != 4:
        raise ValueError(f"expected two (B, C, H, W) of one shape; got {tuple(image.shape)}, {tuple(reference.shape)}")
