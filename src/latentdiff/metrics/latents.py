"""What the latents of stage one are like: per-channel statistics and price, correlation, spectrum, codebook."""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist
from torch import Tensor

from latentdiff.metrics.codebook import codebook_usage
from latentdiff.metrics.rows import column_if_any
from latentdiff.metrics.spectrum import radial_power, spectrum
from latentdiff.models.autoencoder.bottlenecks.base import DiagonalGaussian
from latentdiff.models.autoencoder.bottlenecks.codes import check_indices
from latentdiff.types import Column, Rows


def channel_sums(posterior: DiagonalGaussian) -> Tensor:
    """Per image and channel, over positions: sum of the mean, of its square, of the variance, and the number of
    positions; float64 (B, 4, C)."""
    mean, std = posterior.mean.double(), posterior.std.double()
    parts = (mean, mean.square(), std.square(), torch.ones_like(mean))
    return torch.stack([part.sum((2, 3)) for part in parts], dim=1)


def channel_moments(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``channel_sums`` summed over images, (4, C) -> mean, standard deviation of a draw, root mean posterior variance;
    float64 (C,) each. The variance of a draw is that of the posterior means plus the mean posterior variance."""
    total, squares, variances, count = sums
    if not bool((count > 0).all()):
        raise ValueError("no latent was measured")
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0.0) + variances / count
    return mean, variance.clamp_min(1e-12).sqrt(), (variances / count).sqrt()


class ChannelMoments:
    """``channel_moments`` over the images of all ranks, summed where the latents are."""

    def __init__(self, channels: int, device: torch.device | str = "cpu"):
        self._sums = torch.zeros(4, channels, dtype=torch.float64, device=device)

    def update(self, posterior: DiagonalGaussian) -> None:
        """Posteriors with components (B, C, h, w)."""
        self._sums += channel_sums(posterior).sum(0)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """As ``channel_moments``. Collective."""
        sums = self._sums.clone()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        return channel_moments(sums)


class LatentDiagnostics:
    """Rows of posteriors, and what they say of a whole set.

    Args:
        codebook_entries: size of the codebook, None where there is none.
    """

    def __init__(self, *, codebook_entries: int | None = None):
        self.codebook_entries = codebook_entries

    @torch.no_grad()
    def measure(self, posterior: DiagonalGaussian, indices: Tensor | None = None) -> dict[str, Column]:
        """Posteriors with components (B, C, h, w), and their codebook indices (B, ...) -> sums over each image.

        Raises:
            InputError: an index is none of the codebook's.
        """
        mean = posterior.mean.double()
        found: dict[str, Column] = {
            "size": torch.tensor(mean.shape[-2:]).expand(len(mean), 2),
            "sums": channel_sums(posterior),
            "products": torch.einsum("bchw,bdhw->bcd", mean, mean),
            "power": radial_power(mean),
        }
        if posterior.logvar is not None:
            found["nats"] = posterior.kl().double().sum((2, 3))
        if indices is not None and self.codebook_entries is not None:
            check_indices(indices, self.codebook_entries)
            found["codes"] = indices.flatten(1).int()
        return found

    def result(self, rows: Rows) -> dict[str, object]:
        """JSON-ready; lists have one value per channel, ``kl_nats`` those of a whole image.

        ``correlation`` is that of the posterior means over images and positions; ``spectrum`` and ``codebook`` as in
        ``metrics.spectrum`` and ``metrics.codebook``. What a bottleneck does not have is absent.
        """
        sums = _total(rows, "sums")
        mean, std, posterior_std = channel_moments(sums)
        correlation = _correlation(sums, _total(rows, "products"))
        apart = (correlation - torch.diag(correlation.diag())).abs()
        channels: dict[str, list] = {"mean": mean.tolist(), "std": std.tolist()}
        found: dict[str, object] = {
            "images": len(rows),
            "channels": channels,
            "smallest_std": float(std.min()),
            "largest_std": float(std.max()),
            "largest_correlation": float(apart.max()),
        }
        if column_if_any(rows, "nats") is not None:
            nats = _total(rows, "nats") / len(rows)
            channels["posterior_std"] = posterior_std.tolist()
            channels["kl_nats"] = nats.tolist()
            found["kl_nats_per_image"] = float(nats.sum())
        found["correlation"] = correlation.tolist()
        if curve := spectrum(_total(rows, "power"), _size(rows)):
            found["spectrum"] = curve
        if self.codebook_entries is not None:
            found["codebook"] = codebook_usage(rows.blocks("codes"), self.codebook_entries)
        return found


def _total(rows: Rows, name: str) -> Tensor:
    """Over all images, in their order; a block of them in memory at a time."""
    return functools.reduce(torch.add, (block.sum(0) for block in rows.blocks(name)))


def _size(rows: Rows) -> tuple[int, int]:
    """(h, w) of the latents. Raises ValueError where they are not all of one size."""
    sizes = {(int(height), int(width)) for height, width in rows.column("size").unique(dim=0)}
    if len(sizes) != 1:
        raise ValueError(f"a spectrum is one of latents of one size; got {sorted(sizes)}")
    return sizes.pop()


def _correlation(sums: Tensor, products: Tensor) -> Tensor:
    """(C, C); zeros off the diagonal for a channel that never changes."""
    means, positions = sums[0] / sums[3], sums[3, 0]
    covariance = products / positions - torch.outer(means, means)
    scale = covariance.diag().clamp_min(1e-12).sqrt()
    return (covariance / torch.outer(scale, scale)).clamp(-1.0, 1.0)
