"""Evaluating a first stage: reconstructions whose latents are looked at on the way, and what is said about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from rich.table import Table
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.generation.pipeline import ROUNDING, to_uint8
from latentdiff.metrics.latents import LatentDiagnostics
from latentdiff.metrics.paired import Fidelity
from latentdiff.metrics.patch_pca import PatchPca
from latentdiff.metrics.reconstruction import Psnr, Ssim
from latentdiff.models.autoencoder.bottlenecks.base import DiagonalGaussian
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.types import Batch, Column, Metric, Rows

SHOWN_CHANNELS = 16


@runtime_checkable
class Quantiser(Protocol):
    """A bottleneck with a codebook, VQ or FSQ."""

    entries: int

    def indices(self, z: Tensor) -> Tensor: ...


class MeasuredReconstruction:
    """As ``generation.pipeline.Reconstruction``; what it makes of the last batch can be looked at on the way.

    One pass of encoder and decoder per image, in float32; the decoder reads the posterior mean.
    """

    reads_seeds = False
    """See ``card.protocol``."""

    def __init__(self, *, codec: LatentCodec, device: torch.device | str):
        self.codec, self.device = codec, torch.device(device)
        self._last: tuple[Batch, DiagonalGaussian] | None = None

    @torch.inference_mode()
    def __call__(self, batch: Batch, seeds: list[int]) -> Tensor:
        """``batch.image`` -> uint8 (B, 3, H, W). The seeds do nothing."""
        posterior = self.posterior(batch)
        with torch.autocast(self.device.type, enabled=False):
            return to_uint8(self.codec.decode(self.codec.whiten(posterior.mean)))

    @torch.inference_mode()
    def posterior(self, batch: Batch) -> DiagonalGaussian:
        """That of ``batch.image``; kept until another batch comes, so that the encoder sees each batch once."""
        if batch.image is None:
            raise InputError("reconstructions need images, the batch has none")
        if self._last is None or self._last[0] is not batch:
            with torch.autocast(self.device.type, enabled=False):
                images = batch.image.to(self.device).float() / 127.5 - 1.0
                self._last = batch, self.codec.autoencoder.encode(images)
        return self._last[1]

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        told = {"reconstruction": "posterior mean", "decoder_precision": "float32", "to_uint8": ROUNDING}
        return {**told, "device": self.device.type}


class Latents:
    """The metric that looks at a first stage's latents: ``metrics.latents``, and ``whitened``.

    ``whitened`` is what the codec's statistics, which are those of training images, make of these latents: close to
    mean 0 and standard deviation 1 where the sets are alike.

    Args:
        model: what makes the images that are measured; its posteriors are read.
    """

    def __init__(self, *, model: MeasuredReconstruction):
        self.model = model
        quantiser = model.codec.autoencoder.bottleneck
        self._quantiser = quantiser if isinstance(quantiser, Quantiser) else None
        self._diagnostics = LatentDiagnostics(codebook_entries=None if self._quantiser is None else quantiser.entries)

    @torch.inference_mode()
    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """Of ``batch.image``'s posteriors; the images are not looked at."""
        posterior = self.model.posterior(batch)
        with torch.autocast(self.model.device.type, enabled=False):
            indices = None if self._quantiser is None else self._quantiser.indices(posterior.mean)
            return self._diagnostics.measure(posterior, indices)

    def result(self, rows: Rows) -> dict[str, object]:
        found = self._diagnostics.result(rows)
        mean, std = (torch.tensor(found["channels"][name], dtype=torch.float64) for name in ("mean", "std"))
        own_mean, own_std = (each.double().flatten().cpu() for each in (self.model.codec.mean, self.model.codec.std))
        whitened = std / own_std
        found["whitened"] = {
            "largest_mean": float(((mean - own_mean) / own_std).abs().max()),
            "smallest_std": float(whitened.min()),
            "largest_std": float(whitened.max()),
        }
        return found


class Faithfulness:
    """PSNR and SSIM of the reconstructions, with the PSNR of the patch PCA of equal size and how much more the model's
    own is, both in dB."""

    def __init__(self, *, floor: PatchPca):
        self.floor = floor
        self._all = Fidelity(metrics=[Psnr(), Ssim(), floor])

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        return self._all.measure(images, batch)

    def result(self, rows: Rows) -> dict[str, float]:
        """{"psnr", "ssim", "patch_pca_psnr", "db_above_patch_pca"}."""
        found = self._all.result(rows)
        return {**found, "db_above_patch_pca": found["psnr"] - found[self.floor.name]}

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"patch_pca": self.floor.describe()}


def metrics_of_stage_one(model: MeasuredReconstruction, images: Iterable[Tensor]) -> dict[str, Metric]:
    """What every first stage is measured by.

    Args:
        images: uint8 (B, 3, H, W) of the training set on the model's device, which the patch PCA is fitted on.
    """
    floor = PatchPca(images=images, factor=model.codec.factor, components=model.codec.channels)
    return {"reconstruction": Faithfulness(floor=floor), "latents": Latents(model=model)}


def channels_table(channels: Mapping[str, list[float]]) -> Table:
    """The first ``SHOWN_CHANNELS`` latent channels, one column each; the rest is in results.json."""
    count = len(channels["mean"])
    shown = min(count, SHOWN_CHANNELS)
    title = "latent channels" if shown == count else f"the first {shown} of {count} latent channels"
    table = Table("channel", title=title)
    for i in range(shown):
        table.add_column(str(i), justify="right")
    for name, values in channels.items():
        table.add_row(name, *(f"{value:.3g}" for value in values[:shown]))
    return table
