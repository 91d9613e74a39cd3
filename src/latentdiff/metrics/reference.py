"""What generated images are compared with: features of real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from latentdiff.metrics.gaussian import FrechetStatistics
from latentdiff.types import Rows


class Reference(Protocol):
    """Real images as one extractor sees them."""

    @property
    def count(self) -> int | None:
        """How many the moments are of, None where nobody has told."""
        ...

    def moments(self, layer: str) -> FrechetStatistics:
        """Mean and covariance. Raises InputError where the reference does not have the layer."""
        ...

    def features(self, layer: str) -> Tensor:
        """float32 (M, width), of all images or of some. Raises InputError where it has moments alone."""
        ...

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        ...


def given(reference: Reference | None) -> Reference:
    """Raises ValueError where there is none; ``OnFeatures`` has refused that before."""
    if reference is None:
        raise ValueError("this number compares with real images, and there is no reference")
    return reference


class MeasuredReference:
    """That of real images' rows (``OnFeatures.measure_real``). ``about``: what else the card says of them."""

    def __init__(self, rows: Rows, about: Mapping[str, object] | None = None):
        self._rows, self.count, self._about = rows, len(rows), dict(about or {})
        self._moments: dict[str, FrechetStatistics] = {}

    def moments(self, layer: str) -> FrechetStatistics:
        if layer not in self._moments:
            self._moments[layer] = FrechetStatistics.of_blocks(self._rows.blocks(layer))
        return self._moments[layer]

    def features(self, layer: str) -> Tensor:
        return self._rows.column(layer)

    def describe(self) -> dict[str, object]:
        return {"count": self.count, **self._about}
