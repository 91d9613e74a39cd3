"""Precision and recall that single outliers do not change."""

from __future__ import annotations

import torch

from latentdiff.metrics.features.base import POOL, Features
from latentdiff.metrics.neighbour_balls import (
    ball_radii,
    check_neighbours,
    check_options,
    compared_features,
    distance_blocks,
    names_of_compared,
)
from latentdiff.metrics.on_features import Naming
from latentdiff.metrics.reference import Reference, given
from latentdiff.types import Rows


class DensityCoverage:
    """Density and coverage (Naeem et al., arXiv:2002.09797, eq. 4 and 5).

    Of the balls around real images that reach to their k-th nearest other: ``density`` is how many hold a generated
    image, over k, mean over the generated ones (about 1 where both sets have one law, no bound above); ``coverage`` is
    the share that hold any. A ball's border belongs to it, as in ``PrecisionRecall``, whose arguments these are.
    """

    needs_reference = True

    def __init__(self, *, k: int = 5, count: int | None = 10_000, layer: str = POOL, seed: int = 0):
        check_options(self, k, count)
        self.k, self.count, self.layer, self.seed = k, count, layer, seed
        self.layers = (layer,)

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]:
        generated, real = compared_features(
            rows, given(reference), self.layer, k=self.k, count=self.count, seed=self.seed
        )
        radii = ball_radii(real, self.k)
        held, covered = 0, torch.zeros(len(real), dtype=torch.bool)
        for _, squared in distance_blocks(generated, real):
            inside = squared <= radii
            held += int(inside.sum())
            covered |= inside.any(dim=0)
        values = held / (self.k * len(generated)), float(covered.double().mean())
        return dict(zip(self.names(naming), values))

    def names(self, naming: Naming) -> list[str]:
        return names_of_compared(("density", "coverage"), naming, self.layer, self.count)

    def check(self, features: Features, count: int) -> None:
        check_neighbours("generated", count, self.k)

    def describe(self) -> dict[str, object]:
        return {"k": self.k, "count": self.count, "layer": self.layer, "seed": self.seed}
