"""The Fréchet distance that infinitely many generated images would have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.metrics.features.base import POOL, Features
from latentdiff.metrics.frechet import frechet_name
from latentdiff.metrics.gaussian import FrechetStatistics, frechet_distance
from latentdiff.metrics.on_features import Naming
from latentdiff.metrics.reference import Reference, given
from latentdiff.types import Rows


class FrechetInfinity:
    """Extrapolation of the distance to 1 / N = 0 (Chong & Forsyth, arXiv:1911.07023, section 4): least squares on
    distances of seeded subsets, without replacement, of evenly spaced sizes. ``_sd``: standard deviation of these
    around the line. What the reference's own number of images adds stays.

    Args:
        points: sizes.
        least: the smallest; None: a tenth of the images, at least as many as there are features.
        layer: of the features.
        seed: of the subsets.
    """

    needs_reference = True

    def __init__(self, *, points: int = 15, least: int | None = None, layer: str = POOL, seed: int = 0):
        if points < 3:
            raise InputError(f"the extrapolation needs at least 3 points, got {points}")
        if least is not None and least < 2:
            raise InputError(f"the option least of FrechetInfinity must be at least 2 images, got {least}")
        self.points, self.least, self.layer, self.seed = points, least, layer, seed
        self.layers = (layer,)

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]:
        features, real = rows.column(self.layer), given(reference).moments(self.layer)
        sizes = np.linspace(self._least(features.shape[1], len(features)), len(features), self.points).astype(int)
        distances = [
            frechet_distance(FrechetStatistics.of(self._subset(features, number, int(size))), real)
            for number, size in enumerate(sizes)
        ]
        line, (residual, *_), *_ = np.polyfit(1 / sizes, distances, 1, full=True)
        values = float(line[1]), float(np.sqrt(residual / (self.points - 2)))
        return dict(zip(self.names(replace(naming, real=real.count)), values))

    def names(self, naming: Naming) -> list[str]:
        return [frechet_name(naming, self.layer, suffix) for suffix in ("_infinity", "_infinity_sd")]

    def check(self, features: Features, count: int) -> None:
        width = features.layers[self.layer]
        least = self._least(width, count)
        if least < width or 2 * least > count:
            raise InputError(
                f"the extrapolation of a Fréchet distance by {width} features goes from {least} images to {count}; it "
                f"must start at {width} or more, where the bias falls with 1/N, and end at twice that; raise "
                "num_images, set the option least of FrechetInfinity, or leave it out"
            )

    def describe(self) -> dict[str, object]:
        return {"layer": self.layer, "points": self.points, "least": self.least, "seed": self.seed}

    def _least(self, width: int, count: int) -> int:
        return max(width, count // 10) if self.least is None else self.least

    def _subset(self, features: Tensor, number: int, size: int) -> Tensor:
        generator = keyed_generator(self.seed, "frechet_infinity", number)
        return features[torch.randperm(len(features), generator=generator)[:size]]
