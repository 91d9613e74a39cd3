"""Balls around features that reach to their k-th nearest other, and the distances they hold, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.metrics.on_features import Naming, on_layer
from latentdiff.metrics.reference import Reference
from latentdiff.types import Rows

BLOCK = 512
"""Rows of the table of distances that are in memory at once."""
ROUNDING = 1e-13
"""Squared distances below this share of the squared norms are 0: features that are equal."""


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of ``x``, and their squared Euclidean distances to all of ``y``, float64 (rows, M), for x (N, d), y (M, d).

    |a|^2 + |b|^2 - 2 a.b around the mean of ``y``: a product of matrices, whose float64 leaves no difference of large
    numbers that float32 features could show.
    """
    y = y.double()
    centre = y.mean(dim=0)
    y = y - centre
    y_norms = y.square().sum(dim=1)
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK].double() - centre
        norms = block.square().sum(dim=1, keepdim=True) + y_norms
        squared = torch.addmm(norms, block, y.T, alpha=-2)
        yield slice(start, start + len(block)), squared.masked_fill_(squared < ROUNDING * norms, 0)


def ball_radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row of x (N, d) to its k-th nearest other, float64 (N,)."""
    nearest = [squared.topk(k + 1, largest=False).values.amax(dim=1) for _, squared in distance_blocks(x, x)]
    return torch.cat(nearest)


def compared_features(
    rows: Rows, reference: Reference, layer: str, *, k: int, count: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Features of generated and of real images, at most ``count`` of each, drawn with ``seed`` where there are more.

    Raises:
        InputError: too few for a k-th neighbour.
    """
    found = [rows.column(layer), reference.features(layer)]
    for i, (whose, features) in enumerate(zip(("generated", "real"), found)):
        check_neighbours(whose, len(features), k)
        if count is not None and len(features) > count:
            order = torch.randperm(len(features), generator=keyed_generator(seed, "neighbours", whose))
            found[i] = features[order[:count].sort().values]
    return found[0], found[1]


def names_of_compared(names: Sequence[str], naming: Naming, layer: str, count: int | None) -> list[str]:
    """The names, with the number of generated images that ``compared_features`` leaves."""
    naming = replace(naming, count=min(naming.count, count or naming.count))
    return [naming(on_layer(name, layer)) for name in names]


def check_options(measure: object, k: int, count: int | None) -> None:
    """Raises InputError where ``count`` images of each set have no ``k``-th neighbour."""
    if k < 1 or (count is not None and count <= k):
        name = type(measure).__name__
        raise InputError(f"{name}: k must be at least 1, and count above k or null; got k = {k} and count = {count}")


def check_neighbours(whose: str, count: int, k: int) -> None:
    """Raises InputError where an image has no k-th neighbour."""
    if count <= k:
        raise InputError(f"the {k}-th nearest neighbour needs more than {k} {whose} images, got {count}")
