"""Fréchet distance between the Gaussians fitted to two sets of features, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff.metrics.features import INCEPTION_NAME, Features
from latentdiff.metrics.gather import Indexed
from latentdiff.types import Batch

FID_MINIMUM = 10_000
"""Fewer images than this are never called a FID: its bias falls with 1/N (2.1 x as large at 5,000 as at 10,000)."""

CHUNK = 1024


@dataclass(frozen=True)
class FrechetStatistics:
    """Gaussian fitted to ``count`` features: mean (d,), covariance (d, d) with N - 1, both float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> FrechetStatistics:
        """From features (N, d), summed in chunks of fixed size in row order: the same bits for any split over ranks."""
        count = _at_least_two(features)
        mean = sum(chunk.double().sum(dim=0) for chunk in features.split(CHUNK)) / count
        centred = (chunk.double() - mean for chunk in features.split(CHUNK))
        return cls(mean, sum(c.T @ c for c in centred) / (count - 1), count)


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2): Dowson & Landau 1982, as FID arXiv:1706.08500.

    The root by symmetric eigendecompositions, so that nothing complex appears.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b.covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(float(distance), 0.0)


def frechet_distance_of(x: Tensor, y: Tensor) -> float:
    """The same distance from features (N, d) and (M, d).

    With fewer rows than features the covariances are singular; the trace of the root is then the nuclear norm of
    X Y^T / sqrt((N - 1)(M - 1)), X and Y centred, which is exact and small.
    """
    n, m = _at_least_two(x), _at_least_two(y)
    if min(n, m) >= x.shape[1]:
        return frechet_distance(FrechetStatistics.of(x), FrechetStatistics.of(y))
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = (x - mean_x) / (n - 1) ** 0.5, (y - mean_y) / (m - 1) ** 0.5
    overlap = torch.linalg.svdvals(x @ y.T).sum()
    distance = (mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2 * overlap
    return max(float(distance), 0.0)


class FrechetDistance:
    """Fréchet distance of generated images to real ones.

    The result is named after the features and the number of generated images, ``fd_randconv-v1_n1000``; ``fid_n50000``
    for the published Inception with at least ``FID_MINIMUM`` images, ``rfid_n50000`` where the images are
    reconstructions of the real ones. Keeps the features (float32) of all images.

    Args:
        features: see ``metrics.features``; moved to the images' device.
        published: name of the distance by the published Inception, "fid" or "rfid".
    """

    def __init__(self, *, features: Features, published: str = "fid"):
        self.features, self.published = features, published
        self._generated, self._reference = Indexed(), Indexed()

    def update(self, images: Tensor, batch: Batch) -> None:
        """Generated images, uint8 (B, 3, H, W), of indices ``batch.start`` onwards."""
        self._generated.add(self._extract(images), batch)

    def update_reference(self, images: Tensor, batch: Batch) -> None:
        """Real images, uint8 (B, 3, H, W), of indices ``batch.start`` onwards."""
        self._reference.add(self._extract(images), batch)

    def compute(self) -> dict[str, float]:
        generated = torch.stack(self._generated.gathered())
        reference = torch.stack(self._reference.gathered())
        return {self.result_name(len(generated)): frechet_distance_of(generated, reference)}

    def of_reconstructions(self) -> FrechetDistance:
        """A fresh one by the same features for the reconstructions of real images: rFID."""
        return FrechetDistance(features=self.features, published="rfid")

    def anew(self) -> FrechetDistance:
        """A fresh one against the reference of this, which both share."""
        other = FrechetDistance(features=self.features, published=self.published)
        other._reference = self._reference
        return other

    def result_name(self, count: int) -> str:
        known = self.features.name == INCEPTION_NAME and count >= FID_MINIMUM
        return f"{self.published}_n{count}" if known else f"fd_{self.features.name}_n{count}"

    def describe(self) -> dict[str, object]:
        """For the protocol card. Collective, as ``compute``."""
        reference_images = len(self._reference.gathered())
        return {"features": self.features.name, "dim": self.features.dim, "reference_images": reference_images}

    def _extract(self, images: Tensor) -> Tensor:
        return self.features.to(images.device)(images)


def _at_least_two(features: Tensor) -> int:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a Fréchet distance needs features (N, d) of at least 2 images; got {tuple(features.shape)}")
    return len(features)
