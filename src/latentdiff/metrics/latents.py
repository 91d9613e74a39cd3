"""What the latents of stage one are like: per-channel statistics and price, correlation, spectrum, codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.metrics.codebook import CodebookUsage
from latentdiff.metrics.gather import summed
from latentdiff.metrics.spectrum import RadialSpectrum
from latentdiff.models.autoencoder.bottlenecks.base import DiagonalGaussian


class ChannelMoments:
    """Mean and standard deviation per channel of draws from posteriors, over images, positions and ranks.

    The variance of a draw is that of the posterior means plus the mean posterior variance. Sums in float64.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu"):
        self._sums = torch.zeros(4, channels, dtype=torch.float64, device=device)

    def update(self, posterior: DiagonalGaussian) -> None:
        """Posteriors with components (B, C, h, w)."""
        mean, std = posterior.mean.double(), posterior.std.double()
        self._sums[0] += mean.sum((0, 2, 3))
        self._sums[1] += mean.square().sum((0, 2, 3))
        self._sums[2] += std.square().sum((0, 2, 3))
        self._sums[3] += mean[:, 0].numel()

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, standard deviation of a draw, root mean posterior variance; float64 (C,) each. Collective."""
        total, squares, variances, count = summed(self._sums)
        if not bool((count > 0).all()):
            raise ValueError("no latent was measured")
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0.0) + variances / count
        return mean, variance.clamp_min(1e-12).sqrt(), (variances / count).sqrt()


class LatentDiagnostics:
    """Accumulates posteriors over a set; ``compute`` is the same on every rank.

    Args:
        channels: latent channels.
        device: where the latents are.
        codebook_entries: size of the codebook, None where there is none.
    """

    def __init__(self, *, channels: int, device: torch.device | str = "cpu", codebook_entries: int | None = None):
        self.moments = ChannelMoments(channels, device)
        self.spectrum = RadialSpectrum()
        self.codebook = None if codebook_entries is None else CodebookUsage(entries=codebook_entries, device=device)
        self._kl = torch.zeros(channels, dtype=torch.float64, device=device)
        self._products = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self._means = torch.zeros(channels, dtype=torch.float64, device=device)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        """Images, positions, images whose posterior has a price."""

    @torch.no_grad()
    def update(self, posterior: DiagonalGaussian, indices: Tensor | None = None) -> None:
        """Posteriors with components (B, C, h, w), and their codebook indices of any shape."""
        mean = posterior.mean.double()
        self.moments.update(posterior)
        self.spectrum.update(mean)
        self._products += torch.einsum("bchw,bdhw->cd", mean, mean)
        self._means += mean.sum((0, 2, 3))
        priced = posterior.logvar is not None
        if priced:
            self._kl += posterior.kl().double().sum((0, 2, 3))
        counted = (len(mean), mean[:, 0].numel(), len(mean) if priced else 0)
        self._counts += torch.tensor(counted, device=self._counts.device)
        if self.codebook is not None and indices is not None:
            self.codebook.update(indices)

    def compute(self) -> dict[str, object]:
        """JSON-ready; lists have one value per channel, ``kl_nats`` those of a whole image. Collective.

        ``correlation`` is that of the posterior means over images and positions; ``spectrum`` and ``codebook`` as in
        ``metrics.spectrum`` and ``metrics.codebook``. What a bottleneck does not have is absent.
        """
        mean, std, posterior_std = self.moments.compute()
        images, positions, priced = summed(self._counts).tolist()
        correlation = self._correlation(positions)
        apart = (correlation - torch.diag(correlation.diag())).abs()
        channels: dict[str, list] = {"mean": mean.tolist(), "std": std.tolist()}
        results: dict[str, object] = {
            "images": images,
            "channels": channels,
            "smallest_std": float(std.min()),
            "largest_std": float(std.max()),
            "largest_correlation": float(apart.max()),
        }
        nats = summed(self._kl)
        if priced:
            channels["posterior_std"] = posterior_std.tolist()
            channels["kl_nats"] = (nats / priced).tolist()
            results["kl_nats_per_image"] = float(nats.sum() / priced)
        results["correlation"] = correlation.tolist()
        if spectrum := self.spectrum.compute():
            results["spectrum"] = spectrum
        if self.codebook is not None:
            results["codebook"] = self.codebook.compute()
        return results

    def _correlation(self, positions: int) -> Tensor:
        """(C, C); zeros off the diagonal for a channel that never changes."""
        means = summed(self._means) / positions
        covariance = summed(self._products) / positions - torch.outer(means, means)
        scale = covariance.diag().clamp_min(1e-12).sqrt()
        return (covariance / torch.outer(scale, scale)).clamp(-1.0, 1.0)
