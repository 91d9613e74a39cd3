"""How many generated images look real, and how many real ones could have been generated."""

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


class PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., arXiv:1904.06991, eq. 1 and 2).

    A set covers the balls around its members that reach to their k-th nearest other member. ``precision``: share of the
    generated images in the balls of real ones; ``recall``: the other way round. Both grow with the number of images;
    the count in the result's name is that of the generated images that were compared.

    Args:
        k: which neighbour ends a ball.
        count: images of each set that are compared, a seeded subset where there are more; None: all.
        layer: of the features.
        seed: of the subset.

    Raises:
        InputError: k is below 1, or the count not above it.
    """

    needs_reference = True

    def __init__(self, *, k: int = 3, count: int | None = 10_000, layer: str = POOL, seed: int = 0):
        check_options(self, k, count)
        self.k, self.count, self.layer, self.seed = k, count, layer, seed
        self.layers = (layer,)

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]:
        generated, real = compared_features(
            rows, given(reference), self.layer, k=self.k, count=self.count, seed=self.seed
        )
        real_radii, radii = ball_radii(real, self.k), ball_radii(generated, self.k)
        precise, recalled = 0, torch.zeros(len(real), dtype=torch.bool)
        for block, squared in distance_blocks(generated, real):
            precise += int((squared <= real_radii).any(dim=1).sum())
            recalled |= (squared <= radii[block, None]).any(dim=0)
        return dict(zip(self.names(naming), (precise / len(generated), float(recalled.double().mean()))))

    def names(self, naming: Naming) -> list[str]:
        return names_of_compared(("precision", "recall"), naming, self.layer, self.count)

    def check(self, features: Features, count: int) -> None:
        check_neighbours("generated", count, self.k)

    def describe(self) -> dict[str, object]:
        return {"k": self.k, "count": self.count, "layer": self.layer, "seed": self.seed}
