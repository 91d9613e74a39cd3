"""Maximum mean discrepancies between features, whose expectation does not depend on the number of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.metrics.features.base import POOL, Features
from latentdiff.metrics.on_features import Naming, on_layer
from latentdiff.metrics.reference import Reference, given
from latentdiff.types import Rows

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, d), (m, d) -> (n, m)."""

BLOCK = 1024


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """The unbiased estimate, which may be negative (Gretton et al., JMLR 13, 2012, eq. 3), of x (N, d) and y (M, d).

    In float64, ``BLOCK`` rows of the kernel's table at a time.
    """
    x, y = x.double(), y.double()
    between = sum(float(kernel(block, y).sum()) for block in x.split(BLOCK)) / (len(x) * len(y))
    return _mean_of_pairs(x, kernel) + _mean_of_pairs(y, kernel) - 2 * between


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3."""
    return torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1]).pow_(3)


class KernelDistance:
    """KID (Binkowski et al., arXiv:1801.01401): squared MMD of the cubic kernel, mean and standard deviation over
    subsets of generated and of real images, drawn without replacement; never clamped.

    Args:
        subsets: how many.
        subset_size: images in each.
        layer: of the features.
        seed: of the subsets.
    """

    needs_reference = True

    def __init__(self, *, subsets: int = 100, subset_size: int = 1000, layer: str = POOL, seed: int = 0):
        if subsets < 1 or subset_size < 2:
            raise InputError(f"KID needs a subset of 2 images or more; got {subsets} of {subset_size}")
        self.subsets, self.subset_size, self.layer, self.seed = subsets, subset_size, layer, seed
        self.layers = (layer,)

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]:
        sets = {"generated": rows.column(self.layer), "real": given(reference).features(self.layer)}
        for whose, features in sets.items():
            self._check(whose, len(features))
        found = []
        for number in range(self.subsets):
            generated, real = (self._subset(features, number, whose) for whose, features in sets.items())
            found.append(squared_mmd(generated, real, cubic_kernel))
        values = torch.tensor(found, dtype=torch.float64)
        return dict(zip(self.names(naming), (float(values.mean()), float(values.std(correction=0)))))

    def names(self, naming: Naming) -> list[str]:
        name = on_layer("kid", self.layer)
        return [naming(name), naming(f"{name}_sd")]

    def check(self, features: Features, count: int) -> None:
        self._check("generated", count)

    def describe(self) -> dict[str, object]:
        about = {"subsets": self.subsets, "subset_size": self.subset_size, "seed": self.seed}
        return {"layer": self.layer, "kernel": "(x.y / d + 1)^3", "estimate": "unbiased", **about}

    def _check(self, whose: str, count: int) -> None:
        if count < self.subset_size:
            raise InputError(
                f"KID takes subsets of {self.subset_size} images, there are {count} {whose} ones; give more, or lower "
                "its subset_size: metrics.GROUP.measures.kid.subset_size=N, which the card tells"
            )

    def _subset(self, features: Tensor, number: int, whose: str) -> Tensor:
        order = torch.randperm(len(features), generator=keyed_generator(self.seed, "kid", whose, number))
        return features[order[: self.subset_size]]


class GaussianKernelDistance:
    """CMMD (Jayasumana et al., arXiv:2401.09603): squared MMD of a Gaussian kernel on CLIP embeddings of norm 1.

    Of all images, by the paper's unbiased estimate. The paper's program keeps the pairs of an image with itself: its
    values are higher, by about 3.5 (1 / N + 1 / M) on photographs, 0.0002 at 30,000.

    Args:
        sigma: the kernel is exp(-|x - y|^2 / (2 sigma^2)).
        scale: what the value is multiplied by.
        layer: of the features.
        name: what results are called, before the features' name.
    """

    needs_reference = True

    def __init__(self, *, sigma: float = 10.0, scale: float = 1000.0, layer: str = POOL, name: str = "cmmd"):
        if sigma <= 0:
            raise InputError(f"sigma must be above 0, got {sigma}")
        self.sigma, self.scale, self.layer, self.name = sigma, scale, layer, name
        self.layers = (layer,)

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]:
        sets = rows.column(self.layer), given(reference).features(self.layer)
        for features in sets:
            self._check(len(features))
        generated, real = (F.normalize(features.double(), dim=1) for features in sets)
        return dict(zip(self.names(naming), [self.scale * squared_mmd(generated, real, self._kernel)]))

    def names(self, naming: Naming) -> list[str]:
        return [naming.by_features(on_layer(self.name, self.layer))]

    def check(self, features: Features, count: int) -> None:
        self._check(count)

    def describe(self) -> dict[str, object]:
        kernel = f"exp(-|x - y|^2 / (2 * {self.sigma:g}^2)), features of norm 1"
        return {"layer": self.layer, "kernel": kernel, "scale": self.scale, "estimate": "unbiased"}

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addmm(x.new_full((), -2.0), x, y.T, alpha=2).div_(2 * self.sigma**2).exp_()

    def _check(self, count: int) -> None:
        if count < 2:
            raise InputError(f"{self.name} needs at least 2 images, got {count}")


def _mean_of_pairs(x: Tensor, kernel: Kernel) -> float:
    """Over all pairs of different rows."""
    total = 0.0
    for start in range(0, len(x), BLOCK):
        table = kernel(x[start : start + BLOCK], x)
        total += float(table.sum() - table.diagonal(offset=start).sum())
    return total / (len(x) * (len(x) - 1))
