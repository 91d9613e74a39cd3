"""Metrics that hold each reconstruction against its own original: means over images of one value per image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.gather import Indexed
from latentdiff.types import Batch


class Paired(ABC):
    """Mean over images of ``compare``; a subclass names its result and says what one image's value is.

    The values are kept by index: how the images are split over batches and ranks changes no bit of the mean.
    """

    name: str

    def __init__(self) -> None:
        self._values = Indexed()

    @abstractmethod
    def compare(self, images: Tensor, originals: Tensor) -> Tensor:
        """Both uint8 (B, 3, H, W) on one device -> one value per image, (B,)."""

    def update(self, images: Tensor, batch: Batch) -> None:
        """Reconstructions, uint8 (B, 3, H, W), of ``batch.image``."""
        if batch.image is None:
            raise InputError(f"{self.name} needs the batch's own images to compare with, the batch has none")
        self._values.add(self.compare(images, batch.image.to(images.device)), batch)

    def compute(self) -> dict[str, float]:
        """{name: mean}. Collective."""
        return {self.name: float(torch.stack(self._values.gathered()).double().mean())}


class Fidelity:
    """Several paired metrics under one name in the results."""

    def __init__(self, *, metrics: Sequence[Paired]):
        self.metrics = list(metrics)

    def update(self, images: Tensor, batch: Batch) -> None:
        for metric in self.metrics:
            metric.update(images, batch)

    def compute(self) -> dict[str, float]:
        return {name: value for metric in self.metrics for name, value in metric.compute().items()}


def check_pair(image: Tensor, reference: Tensor) -> None:
    """ValueError unless both are (B, C, H, W) of one shape."""
    if image.shape != reference.shape or image.ndim != 4:
        raise ValueError(f"expected two (B, C, H, W) of one shape; got {tuple(image.shape)}, {tuple(reference.shape)}")
