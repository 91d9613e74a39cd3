"""The Gaussian fitted to features, and the Fréchet distance between two of them, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 1024


@dataclass(frozen=True)
class FrechetStatistics:
    """Gaussian fitted to ``count`` features (None: nobody has told how many): mean (d,), covariance (d, d) with N - 1,
    both float64."""

    mean: Tensor
    covariance: Tensor
    count: int | None

    @classmethod
    def of(cls, features: Tensor) -> FrechetStatistics:
        """From features (N, d), summed in chunks of fixed size in row order."""
        return cls.of_blocks(features.split(CHUNK))

    @classmethod
    def of_blocks(cls, blocks: Iterable[Tensor]) -> FrechetStatistics:
        """From consecutive features (n, d), seen once: memory does not grow with N. Sums are around the first block's
        mean, so that the covariance is no difference of large numbers."""
        count, origin = 0, torch.empty(0)
        for block in blocks:
            if block.ndim != 2:
                raise ValueError(f"expected features (N, d); got {tuple(block.shape)}")
            x = block.double()
            if count == 0:
                origin = x.mean(dim=0)
                total, products = torch.zeros_like(origin), origin.new_zeros(len(origin), len(origin))
            x = x - origin
            count, total = count + len(x), total + x.sum(dim=0)
            products.addmm_(x.T, x)
        if count < 2:
            raise ValueError(f"a Gaussian needs features of at least 2 images; got {count}")
        shift = total / count
        covariance = (products - count * torch.outer(shift, shift)) / (count - 1)
        return cls(origin + shift, (covariance + covariance.T) / 2, count)

    @cached_property
    def root(self) -> Tensor:
        """Symmetric root of the covariance, computed once."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (B^1/2 A B^1/2)^1/2): Dowson & Landau 1982, as FID arXiv:1706.08500.

    By symmetric eigendecompositions, so that nothing complex appears.
    """
    product = b.root @ a.covariance @ b.root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return _distance(a.mean - b.mean, a.covariance.trace(), b.covariance.trace(), overlap)


def frechet_distance_of(x: Tensor, b: FrechetStatistics) -> float:
    """The same distance of the Gaussian fitted to features (N, d).

    With fewer rows than features its covariance X^T X / (N - 1), X centred, is singular. The trace of the root is then
    the nuclear norm of X B^1/2 / sqrt(N - 1), which takes no root of what should be 0.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"a Fréchet distance needs features (N, d) of at least 2 images; got {tuple(x.shape)}")
    if len(x) >= x.shape[1]:
        return frechet_distance(FrechetStatistics.of(x), b)
    x = x.double()
    mean = x.mean(dim=0)
    x = (x - mean) / (len(x) - 1) ** 0.5
    overlap = torch.linalg.svdvals(x @ b.root).sum()
    return _distance(mean - b.mean, x.square().sum(), b.covariance.trace(), overlap)


def _distance(shift: Tensor, trace_a: Tensor, trace_b: Tensor, overlap: Tensor) -> float:
    return max(float(shift.square().sum() + trace_a + trace_b - 2 * overlap), 0.0)
